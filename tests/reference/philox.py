"""Philox4x32-10 in plain integers, from the paper's description (Salmon et al., SC 2011, section 3.3)."""

Words = tuple[int, int, int, int]


def philox4x32(counter: Words, key: tuple[int, int], rounds: int = 10) -> Words:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 % 2**32,
            (product0 >> 32) ^ c3 ^ k1,
            product0 % 2**32,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def uniform_of(seed: int, position: int, token: int) -> float:
    word = philox4x32((token // 4, position, 0, 0), (seed % 2**32, seed >> 32))[token % 4]
    return (word + 0.5) / 2**32

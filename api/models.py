"""Which models there are, as a request names them."""

from __future__ import annotations

import asyncio

from api.backend import Backend, ModelCard
from protocol.errors import NotReady, UnknownModel


def check_model(backend: Backend, model: str) -> None:
    """Raises UnknownModel if the backend has no such model."""
    if model not in backend.names:
        raise UnknownModel(f"model {model[:100]!r} does not exist; this server has {', '.join(backend.names)}")


async def find_model(backend: Backend, model: str) -> ModelCard:
    """The card of a model; other targets are not asked. Raises UnknownModel or NotReady."""
    check_model(backend, model)
    card = await backend.card(model)
    if card is None:
        raise NotReady(f"model {model} is still loading", (await backend.starting(model)).left_s)
    return card


async def loaded_models(backend: Backend) -> list[ModelCard]:
    """The cards of all models that have loaded. Raises NotReady if there are none."""
    cards = [card for card in await asyncio.gather(*map(backend.card, backend.names)) if card is not None]
    if not cards:
        raise NotReady("the models are still loading")
    return cards

// A rollout in one task for all threads: each pick is the input of the next pass. If the exit has stream heads, guesses
// follow it; a guess that equals the pick saves a pass (model/streams.py, model/rollout.py).
#pragma once
#include <array>

#include "decoder.h"

namespace dp {

constexpr int kMaxStreams = 4;

// The end of a row's draft: `length` tokens, or the first token where the product of confidences is at most `floor`
// (0: never). On return, length is the number of drafted tokens.
struct Limit {
    int64_t length;
    double floor;
};

// A row that drafts.
struct Draft {
    Picking how;  // position: of the next token
    Limit* limit;
    Pick* out;  // [limit->length]
    int count = 0;
    double certainty = 1.0;
    int num_guesses = 0;
    std::array<int64_t, 1 + kMaxStreams> fed{};  // inputs of the next pass: the last pick, then guesses

    bool goes_on() const { return count < limit->length && !(limit->floor > 0 && certainty <= limit->floor); }

    // Takes the picks after the last pick and after each guess, up to the first wrong guess. Returns the number of right
    // guesses.
    int take(const Pick* picks) {
        for (int right = 0;; right++) {
            const Pick& pick = out[count++] = picks[right];
            certainty *= pick.confidence;
            how.position++;
            if (goes_on() && right < num_guesses && fed[1 + right] == pick.token) continue;
            fed[0] = pick.token;
            num_guesses = 0;
            return right;
        }
    }

    // Whether another guess is useful: the last token of a draft is never an input.
    bool has_room() const { return limit->length - count > num_guesses + 1; }
};

template <class T>
class Roller {
   public:
    // drafts: one per row of `pass`. boundary: [slots][hidden], receives the output of the last layer; or null.
    Roller(Decoder<T>& decoder, typename Decoder<T>::Pass& pass, std::vector<Draft>& drafts, float* boundary)
        : decoder_(decoder), pass_(pass), drafts_(drafts), boundary_(boundary), width_(decoder.shape.hidden) {}

    // ids: [pass.tokens]. Rows leave when their draft ends. Rows have slots for all tokens that may be inputs. Returns
    // the number of passes.
    int roll(const int64_t* ids, int depth, int num_streams) {
        ids_.assign(ids, ids + pass_.tokens);
        const std::vector<Stream<T>>& streams = decoder_.streams[depth];
        int passes = 0;
        decoder_.pool->run([&](int thread) {
            while (!drafts_.empty()) {
                if (thread == 0) start(), passes++;
                decoder_.pool->barrier();
                for (int l = 0; l < depth; l++) decoder_.layer(pass_, l, thread);
                pick_from(pass_.hidden, true, thread);
                if (thread == 0) {
                    if (boundary_) keep();
                    take();
                }
                decoder_.pool->barrier();
                for (int s = 0; s < num_streams && guess(streams[s], thread); s++) {}
                if (thread == 0) feed();
                decoder_.pool->barrier();
            }
        });
        return passes;
    }

   private:
    Decoder<T>& decoder_;
    typename Decoder<T>::Pass& pass_;
    std::vector<Draft>& drafts_;
    float* boundary_;
    const int width_;
    std::vector<int64_t> ids_, wanted_;  // inputs of the next pass; indices of hidden states to pick from
    std::vector<Picking> how_;           // one per wanted state
    std::vector<Pick> picks_;
    std::vector<float> hidden_, states_, embedded_;
    std::vector<int> guessing_;  // the draft of each state

    void start() {
        hidden_.resize(ids_.size() * width_);
        pass_.hidden = hidden_.data();
        pass_.tokens = int(ids_.size());
        decoder_.prepare(pass_);
        decoder_.embed(ids_.data(), pass_.tokens, pass_.hidden);
        wanted_.clear(), how_.clear();
        for (size_t r = 0; r < drafts_.size(); r++)
            for (int back = drafts_[r].num_guesses; back >= 0; back--) {
                wanted_.push_back(pass_.rows[r].first + pass_.rows[r].num_new - 1 - back);
                how_.push_back(drafts_[r].how);
                how_.back().position += drafts_[r].num_guesses - back;
            }
        picks_.resize(wanted_.size());
        decoder_.work.logits.resize(int(wanted_.size()), decoder_.shape.vocab);
    }

    void pick_from(const float* hidden, bool wants_confidence, int thread) {
        const int count = int(wanted_.size()), vocab = decoder_.shape.vocab, num_threads = decoder_.pool->size();
        float* logits = decoder_.work.logits.data;
        decoder_.score(hidden, wanted_.data(), count, logits, thread);
        for (int r = thread; r < count; r += num_threads)
            picks_[r] = pick(logits + size_t(r) * vocab, vocab, how_[r], wants_confidence);
        decoder_.pool->barrier();
    }

    void keep() const {
        for (const Row& row : pass_.rows)
            for (int i = 0; i < row.num_new; i++)
                std::memcpy(boundary_ + row.slots[row.total - row.num_new + i] * width_,
                            pass_.hidden + size_t(row.first + i) * width_, width_ * sizeof(float));
    }

    // Every row takes its picks. Rows whose draft continues stay, with the state of their last pick.
    void take() {
        states_.resize(drafts_.size() * width_);
        guessing_.clear();
        size_t kept = 0;
        for (size_t r = 0, at = 0; r < drafts_.size(); r++) {
            const size_t first = at;
            at += drafts_[r].num_guesses + 1;
            const int right = drafts_[r].take(picks_.data() + first);
            if (!drafts_[r].goes_on()) {
                drafts_[r].limit->length = drafts_[r].count;
                continue;
            }
            std::memcpy(&states_[kept * width_], pass_.hidden + wanted_[first + right] * width_, width_ * sizeof(float));
            guessing_.push_back(int(kept));
            pass_.rows[kept] = pass_.rows[r];
            drafts_[kept++] = drafts_[r];
        }
        pass_.rows.resize(kept);
        drafts_.resize(kept);
    }

    // Adds a guess to every row with room for it. Returns false if there is no such row.
    bool guess(const Stream<T>& stream, int thread) {
        Workspace<T>& work = decoder_.work;
        Pool& pool = *decoder_.pool;
        if (thread == 0) join(stream);
        pool.barrier();
        const int count = int(guessing_.size());
        if (!count) return false;
        multiply(work.joined.data, work.joined.stride, count, stream.inner, thread, pool, [&](int row, int strip, vf* sums, int n) {
            for (int v = 0; v < n * kVecs; v++) store_floats(work.guessed.row(row) + strip * kStrip + v * kLanes, activate(Activation::silu, sums[v]));
        });
        pool.barrier();
        multiply(work.guessed.data, work.guessed.stride, count, stream.outer, thread, pool, [&](int row, int strip, vf* sums, int n) {
            for (int v = 0; v < n * kVecs; v++) decoder_.add(&states_[size_t(row) * width_], strip * kStrip + v * kLanes, width_, sums[v]);
        });
        pool.barrier();
        pick_from(states_.data(), false, thread);
        if (thread == 0)
            for (int g = 0; g < count; g++) {
                Draft& draft = drafts_[guessing_[g]];
                draft.fed[1 + draft.num_guesses++] = picks_[g].token;
            }
        return true;
    }

    // The input of a stream head: the state and the embedding of its pick, both normalized to unit mean square.
    void join(const Stream<T>& stream) {
        size_t count = 0;
        for (size_t g = 0; g < guessing_.size(); g++) {
            if (!drafts_[guessing_[g]].has_room()) continue;
            if (count != g) std::memcpy(&states_[count * width_], &states_[g * width_], width_ * sizeof(float));
            guessing_[count++] = guessing_[g];
        }
        guessing_.resize(count);
        embedded_.resize(width_);
        wanted_.clear(), how_.clear();
        decoder_.work.joined.resize(int(count), 2 * width_);
        decoder_.work.guessed.resize(int(count), stream.inner.outputs);
        for (size_t g = 0; g < count; g++) {
            const Draft& draft = drafts_[guessing_[g]];
            Input<T>* joined = decoder_.work.joined.row(int(g));
            decoder_.embed(&draft.fed[draft.num_guesses], 1, embedded_.data());
            unit(&states_[g * width_], width_, joined);
            unit(embedded_.data(), width_, joined + width_);
            wanted_.push_back(int64_t(g));
            how_.push_back(draft.how);
            how_.back().position += draft.num_guesses;
        }
    }

    void feed() {
        ids_.clear();
        for (size_t r = 0; r < drafts_.size(); r++) {
            const Draft& draft = drafts_[r];
            const int num_new = 1 + draft.num_guesses;
            pass_.rows[r] = {pass_.rows[r].slots, int(draft.how.position) + draft.num_guesses, num_new, int(ids_.size())};
            ids_.insert(ids_.end(), draft.fed.begin(), draft.fed.begin() + num_new);
        }
    }

    static void unit(float* x, int n, Input<T>* out) {
        const float scale = inverse_rms(x, n, 1e-6f);
        for (int i = 0; i < n; i++) narrow(out + i, x[i] *= scale);
    }
};

}  // namespace dp

// Drafting ahead in one piece of work for all threads: each token is fed back for the next.
#pragma once
#include <algorithm>

#include "decoder.h"

namespace dp {

// What the caller makes of a row's logits behind `count` drafted tokens: before a pick of them, where token is -1, and of
// the pick. Returns whether they changed, so that another pick is due.
using Ask = int (*)(int64_t row, int64_t count, int64_t token, float* logits);

// How a row drafts: `length` tokens, or up to the first at which the product of its confidences is at most
// `stop_probability`; 0 stops none. On return, length is the number that was drafted. ask: or null.
struct Limit {
    int64_t length;
    double stop_probability;
    Ask ask;
};

// A row that drafts.
struct Draft {
    Picking how;  // position: of the next token
    Limit* limit;
    Pick* out;  // [limit->length]
    int64_t row;
    int count = 0;
    double certainty = 1.0;

    bool goes_on() const {
        const double stop = limit->stop_probability;
        return count < limit->length && !(stop > 0 && certainty <= stop);
    }

    void take(const Pick& pick) {
        out[count++] = pick;
        certainty *= pick.confidence;
        how.position++;
    }

    bool ask(int64_t token, float* logits) const { return limit->ask && limit->ask(row, count, token, logits); }
};

template <class T>
class Roller {
   public:
    // drafts: one per row of `pass`. boundary: [slots][hidden], receives the output of the last layer; or null.
    Roller(Decoder<T>& decoder, typename Decoder<T>::Pass& pass, std::vector<Draft>& drafts, float* boundary)
        : decoder_(decoder), pass_(pass), drafts_(drafts), boundary_(boundary), width_(decoder.shape.hidden) {}

    // ids: [pass.tokens]. Rows leave when their draft is done; slots of all that may be fed are in the rows.
    void roll(const int64_t* ids, int depth) {
        ids_.assign(ids, ids + pass_.tokens);
        decoder_.pool->run([&](int thread) {
            while (!drafts_.empty()) {
                if (thread == 0) start();
                decoder_.pool->barrier();
                for (int l = 0; l < depth; l++) decoder_.layer(pass_, l, thread);
                pick_next(thread);
                if (thread == 0) {
                    mend();
                    if (boundary_) keep();
                    take();
                }
                decoder_.pool->barrier();
            }
        });
    }

   private:
    Decoder<T>& decoder_;
    typename Decoder<T>::Pass& pass_;
    std::vector<Draft>& drafts_;
    float* boundary_;
    const int width_;
    std::vector<int64_t> ids_, wanted_;  // of the next pass; hidden states that tokens are picked from
    std::vector<Pick> picks_;            // these tokens
    bool asks_ = false;                  // whether a row has a say
    Floats hidden_;

    void start() {
        pass_.hidden = hidden_.take(ids_.size() * width_);
        pass_.tokens = int(ids_.size());
        decoder_.prepare(pass_);
        decoder_.embed(ids_.data(), pass_.tokens, pass_.hidden);
        asks_ = std::any_of(drafts_.begin(), drafts_.end(), [](const Draft& draft) { return draft.limit->ask != nullptr; });
        wanted_.clear();
        for (const Row& row : pass_.rows) wanted_.push_back(row.first + row.num_new - 1);
        picks_.resize(wanted_.size());
        decoder_.work.logits.resize(int(wanted_.size()), decoder_.shape.head_size);
    }

    void pick_next(int thread) {
        const int count = int(wanted_.size()), num_threads = decoder_.pool->size();
        decoder_.score(pass_.hidden, wanted_.data(), count, decoder_.work.logits.data, thread);
        if (asks_) {
            if (thread == 0)
                for (int r = 0; r < count; r++) drafts_[r].ask(-1, logits(r));
            decoder_.pool->barrier();
        }
        for (int r = thread; r < count; r += num_threads) pick_from(r);
        decoder_.pool->barrier();
    }

    // Picks anew where the caller refuses the pick.
    void mend() {
        for (size_t r = 0; r < drafts_.size(); r++)
            if (drafts_[r].ask(picks_[r].token, logits(int(r)))) pick_from(int(r));
    }

    float* logits(int r) const { return decoder_.work.logits.data + size_t(r) * decoder_.shape.head_size; }

    void pick_from(int r) { picks_[r] = pick(logits(r), decoder_.columns, drafts_[r].how, true); }

    void keep() const {
        for (const Row& row : pass_.rows)
            for (int i = 0; i < row.num_new; i++)
                std::memcpy(boundary_ + row.slots[row.total - row.num_new + i] * width_,
                            pass_.hidden + size_t(row.first + i) * width_, width_ * sizeof(float));
    }

    // Every row takes its pick; those with more to draft stay, and feed it.
    void take() {
        ids_.clear();
        size_t kept = 0;
        for (size_t r = 0; r < drafts_.size(); r++) {
            drafts_[r].take(picks_[r]);
            if (!drafts_[r].goes_on()) {
                drafts_[r].limit->length = drafts_[r].count;
                continue;
            }
            pass_.rows[kept] = {pass_.rows[r].slots, int(drafts_[r].how.position), 1, int(kept)};
            ids_.push_back(picks_[r].token);
            drafts_[kept++] = drafts_[r];
        }
        pass_.rows.resize(kept);
        drafts_.resize(kept);
    }
};

}  // namespace dp

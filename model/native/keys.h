// What attention reads of a batch: rows of slots, cut into tasks, and their keys and values.
#pragma once
#include <vector>

#include "amx.h"
#include "ops.h"

namespace dp {

struct Row {
    const int64_t* slots;  // slots of positions 0 .. total - 1
    int total, num_new, first;  // first: the row's first token in the flat list
};

template <class T>
struct AttentionView {
    const Input<T>* query;  // [tokens][heads][dim], dimensions in the order of `query_place`
    const T* keys;          // [kv_heads][slots][dim]
    const T* values;
    Inputs<T>* output;      // heads of head_dim, unpadded
    int heads, kv_heads, dim, head_dim, window;
    bool rounds;  // the output to blocks, which a head's queries fill
    size_t num_slots;
    float scale, softcap;  // softcap 0: none
};

// Some queries of one row.
struct Task {
    int row, query, num_queries;
};

constexpr int kQueries = 16;
constexpr int kBlock = kLanes;   // keys per block; their scores fill a register
constexpr int kSegment = 128;    // positions per softmax
constexpr size_t kAhead = 128 << 10;  // bytes of keys and values that are fetched before their use

inline std::vector<Task> attention_tasks(const std::vector<Row>& rows) {
    std::vector<Task> tasks;
    for (int r = 0; r < int(rows.size()); r++)
        for (int q = 0; q < rows[r].num_new; q += kQueries)
            tasks.push_back({r, q, std::min(kQueries, rows[r].num_new - q)});
    return tasks;
}

inline int num_segments(const Row& row) { return (row.total + kSegment - 1) / kSegment; }

// Fetches the keys and values of a thread's pieces of attention, a block at a time, in the order of their use.
template <class T>
class KeysAhead {
   public:
    // pieces: of the heads of all tasks, in `segments` segments each.
    KeysAhead(const AttentionView<T>& view, const std::vector<Row>& rows, const std::vector<Task>& tasks, int segments, Range pieces)
        : view_(view), rows_(rows), tasks_(tasks), segments_(segments), pieces_(pieces) {}

    void fetch() {
        while (at_ >= end_)
            if (!next_piece()) return;
        if (lead_ >= kAhead) return;
        for (const int stop = std::min(at_ + kBlock, end_); at_ < stop; at_++) {
            const size_t place = (head_ * view_.num_slots + slots_[at_]) * view_.dim;
            for (int d = 0; d < view_.dim; d += 64 / int(sizeof(T)))
                __builtin_prefetch(view_.keys + place + d), __builtin_prefetch(view_.values + place + d);
        }
        lead_ += block_bytes();
    }

    // After the use of a block.
    void go_on() {
        lead_ -= std::min(lead_, block_bytes());
        fetch();
    }

   private:
    size_t block_bytes() const { return 2 * kBlock * sizeof(T) * view_.dim; }

    bool next_piece() {
        if (pieces_.begin >= pieces_.end) return false;
        const int at = pieces_.begin / segments_, segment = pieces_.begin++ % segments_;
        const Task& task = tasks_[at / view_.kv_heads];
        const Row& row = rows_[task.row];
        const int first = row.total - row.num_new + task.query, low = view_.window ? std::max(0, first + 1 - view_.window) : 0;
        slots_ = row.slots, head_ = size_t(at % view_.kv_heads);
        at_ = std::max(low, segment * kSegment) & ~(kBlock - 1);
        end_ = segments_ > 1 ? std::min(first + task.num_queries, (segment + 1) * kSegment) : first + task.num_queries;
        return true;
    }

    const AttentionView<T>& view_;
    const std::vector<Row>& rows_;
    const std::vector<Task>& tasks_;
    const int segments_;
    Range pieces_;
    const int64_t* slots_ = nullptr;
    size_t head_ = 0, lead_ = 0;
    int at_ = 0, end_ = 0;
};

}  // namespace dp

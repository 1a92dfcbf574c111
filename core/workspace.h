// Scratch memory that is used again. A first touch of fresh memory costs about 2 us a page of 4 KB,
// more than the arithmetic on it, so blocks go back to a short list instead of the operating
// system.
#pragma once
#include <cstddef>
#include <cstdint>

namespace gatewise {

// Throws std::runtime_error in the words of torch, whose callers look for them.
[[noreturn]] void out_of_memory(int64_t bytes);

// A block of at least `bytes`, 64-byte aligned, until the object dies. Any thread. May run
// out_of_memory.
class Workspace {
 public:
  explicit Workspace(int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  unsigned char* data() const { return data_; }
  // Throws std::logic_error if there are guards and something was written behind the end.
  void check() const;

 private:
  unsigned char* data_;
  int64_t size_;
  unsigned char* guard_;  // the first byte behind the end; null where there are none
};

// The same for what outlives a call: a block of at least `bytes`, to be given back by any thread.
struct Block {
  unsigned char* data;
  int64_t size;
};
Block take_block(int64_t bytes);
void give_back(Block block);

// Memory for a result, which lives as long as whoever called a layer likes. A large one takes that
// of one that is gone, of up to twice its size: the system takes freed memory back at its own
// discretion, and a training step that gets all of it anew takes up to twice its time. Any thread;
// 16-byte aligned. Throws nothing: data is null where there is no memory.
Block take_result(int64_t bytes) noexcept;
void give_back_result(Block block) noexcept;

// For tests: from now on a workspace is full of NaN at first, and what lies behind its end is
// watched. Returns whether it was so.
bool guard_workspaces(bool on);

int64_t workspace_held();   // bytes kept for reuse now
int64_t results_held();     // the same, for results
void release_workspaces();  // gives both back

}  // namespace gatewise

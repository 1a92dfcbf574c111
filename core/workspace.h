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

// For tests: from now on a workspace is full of NaN at first, and what lies behind its end is
// watched. Returns whether it was so.
bool guard_workspaces(bool on);

// Memory for std::free, 64-byte aligned; from a huge page on in huge pages, of which the first
// touch is cheap. May run out_of_memory.
Block fresh_block(int64_t bytes);

int64_t workspace_held();   // bytes kept for reuse now
void release_workspaces();  // gives them back

}  // namespace gatewise

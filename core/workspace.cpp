#include "workspace.h"

#include <pthread.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace gatewise {
namespace {

constexpr std::size_t kKept = 8;              // blocks; more than a few threads rarely run at once
constexpr int64_t kBound = int64_t(1) << 30;  // bytes kept in all
constexpr int64_t kHugePage = int64_t(2) << 20;

struct Block {
  unsigned char* data;
  int64_t size;
};

struct Shelf {
  std::mutex mutex;
  std::vector<Block> blocks;
};
// Never destroyed: a worker or an interpreter that ends late may still hand a block back.
Shelf& shelf = *new Shelf;

// A child must not inherit a mutex that another thread of the parent held.
[[maybe_unused]] const int registered = pthread_atfork(
    [] { shelf.mutex.lock(); }, [] { shelf.mutex.unlock(); }, [] { shelf.mutex.unlock(); });

Block fresh(int64_t bytes) {
  const int64_t align = bytes >= kHugePage ? kHugePage : 64;
  const int64_t size = (bytes + align - 1) / align * align;
  void* data = std::aligned_alloc(std::size_t(align), std::size_t(size));
  if (!data) throw std::bad_alloc();
#if defined(__linux__)
  if (align == kHugePage) madvise(data, std::size_t(size), MADV_HUGEPAGE);
#endif
  return {static_cast<unsigned char*>(data), size};
}

}  // namespace

Workspace::Workspace(int64_t bytes) {
  bytes = bytes < 64 ? 64 : bytes;
  {
    const std::lock_guard lock(shelf.mutex);
    std::size_t best = shelf.blocks.size();
    for (std::size_t k = 0; k < shelf.blocks.size(); k++)
      if (shelf.blocks[k].size >= bytes &&
          (best == shelf.blocks.size() || shelf.blocks[k].size < shelf.blocks[best].size))
        best = k;
    if (best < shelf.blocks.size()) {
      data_ = shelf.blocks[best].data;
      size_ = shelf.blocks[best].size;
      shelf.blocks.erase(shelf.blocks.begin() + std::ptrdiff_t(best));
      return;
    }
  }
  const Block block = fresh(bytes);
  data_ = block.data;
  size_ = block.size;
}

Workspace::~Workspace() {
  unsigned char* surplus = data_;
  {
    const std::lock_guard lock(shelf.mutex);
    int64_t held = size_;
    for (const Block& block : shelf.blocks) held += block.size;
    if (held <= kBound && shelf.blocks.capacity() == 0) shelf.blocks.reserve(kKept);
    if (held <= kBound && shelf.blocks.size() < kKept) {
      shelf.blocks.push_back({data_, size_});
      surplus = nullptr;
    } else if (held <= kBound) {  // full: the smallest makes room
      std::size_t smallest = 0;
      for (std::size_t k = 1; k < shelf.blocks.size(); k++)
        if (shelf.blocks[k].size < shelf.blocks[smallest].size) smallest = k;
      if (shelf.blocks[smallest].size < size_) {
        surplus = shelf.blocks[smallest].data;
        shelf.blocks[smallest] = {data_, size_};
      }
    }
  }
  std::free(surplus);
}

int64_t workspace_held() {
  const std::lock_guard lock(shelf.mutex);
  int64_t held = 0;
  for (const Block& block : shelf.blocks) held += block.size;
  return held;
}

void release_workspaces() {
  std::vector<Block> blocks;
  {
    const std::lock_guard lock(shelf.mutex);
    blocks.swap(shelf.blocks);
  }
  for (const Block& block : blocks) std::free(block.data);
}

}  // namespace gatewise

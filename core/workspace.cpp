#include "workspace.h"

#include <pthread.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace gatewise {
namespace {

constexpr std::size_t kKept = 8;              // blocks; more than a few threads rarely run at once
constexpr int64_t kBound = int64_t(1) << 30;  // bytes kept in all
constexpr int64_t kHugePage = int64_t(2) << 20;
constexpr int64_t kGuard = int64_t(1) << 16;  // bytes behind the end that are watched
constexpr int kNaN = 0xff;                    // every byte of a number: NaN in all types

std::atomic<bool> guarded{false};

struct Shelf {
  std::mutex mutex;
  std::vector<Block> blocks;
  int64_t held() const {
    int64_t held = 0;
    for (const Block& block : blocks) held += block.size;
    return held;
  }
};
// Never destroyed: a worker or an interpreter that ends late may still hand a block back.
Shelf& shelf = *new Shelf;
Shelf& results = *new Shelf;  // the oldest first

constexpr int64_t kSmallResult = int64_t(1) << 16;   // bytes; malloc keeps these itself
constexpr int64_t kLargeResult = int64_t(32) << 20;  // these it never does: worth huge pages
constexpr int64_t kResultsBound = int64_t(1) << 28;  // bytes kept in all
constexpr std::size_t kResultsKept = 32;

// A child must not inherit a mutex that another thread of the parent held.
[[maybe_unused]] const int registered =
    pthread_atfork([] { shelf.mutex.lock(), results.mutex.lock(); },
                   [] { shelf.mutex.unlock(), results.mutex.unlock(); },
                   [] { shelf.mutex.unlock(), results.mutex.unlock(); });

// 64-byte aligned; from a huge page on in huge pages, of which the first touch is cheap. Null where
// there is no memory.
Block aligned_block(int64_t bytes) noexcept {
  const int64_t align = bytes >= kHugePage ? kHugePage : 64;
  const int64_t size = (bytes + align - 1) / align * align;
  void* data = std::aligned_alloc(std::size_t(align), std::size_t(size));
#if defined(__linux__)
  if (data && align == kHugePage) madvise(data, std::size_t(size), MADV_HUGEPAGE);
#endif
  return {static_cast<unsigned char*>(data), size};
}

}  // namespace

void out_of_memory(int64_t bytes) {
  throw std::runtime_error("DefaultCPUAllocator: can't allocate memory: you tried to allocate " +
                           std::to_string(bytes) + " bytes");
}

Block fresh_block(int64_t bytes) {
  const Block block = aligned_block(bytes);
  if (!block.data) out_of_memory(bytes);
  return block;
}

Block take_block(int64_t bytes) {
  Block found{nullptr, 0};
  {
    const std::lock_guard lock(shelf.mutex);
    // The smallest that is large enough. Else the largest goes: what needs less takes the new one,
    // so that a thread ends with one block, the size of its largest call.
    std::size_t best = 0;
    for (std::size_t k = 1; k < shelf.blocks.size(); k++) {
      const int64_t size = shelf.blocks[k].size, so_far = shelf.blocks[best].size;
      if (so_far < bytes ? size > so_far : size >= bytes && size < so_far) best = k;
    }
    if (!shelf.blocks.empty()) {
      found = shelf.blocks[best];
      shelf.blocks.erase(shelf.blocks.begin() + std::ptrdiff_t(best));
    }
  }
  if (found.size >= bytes) return found;
  std::free(found.data);
  return fresh_block(bytes);
}

void give_back(Block block) {
  unsigned char* surplus = block.data;
  {
    const std::lock_guard lock(shelf.mutex);
    const int64_t held = shelf.held() + block.size;
    if (held <= kBound && shelf.blocks.capacity() == 0) shelf.blocks.reserve(kKept);
    if (held <= kBound && shelf.blocks.size() < kKept) {
      shelf.blocks.push_back(block);
      surplus = nullptr;
    } else if (held <= kBound) {  // full: the smallest makes room
      std::size_t smallest = 0;
      for (std::size_t k = 1; k < shelf.blocks.size(); k++)
        if (shelf.blocks[k].size < shelf.blocks[smallest].size) smallest = k;
      if (shelf.blocks[smallest].size < block.size) {
        surplus = shelf.blocks[smallest].data;
        shelf.blocks[smallest] = block;
      }
    }
  }
  std::free(surplus);
}

Workspace::Workspace(int64_t bytes) : guard_(nullptr) {
  bytes = bytes < 64 ? 64 : bytes;
  const bool guard = guarded.load(std::memory_order_relaxed);
  const Block block = guard ? fresh_block(bytes + kGuard) : take_block(bytes);
  data_ = block.data;
  size_ = block.size;
  if (!guard) return;
  guard_ = data_ + bytes;
  std::memset(data_, kNaN, std::size_t(bytes + kGuard));
}

void Workspace::check() const {
  const auto untouched = [](unsigned char byte) { return byte == kNaN; };
  if (guard_ && !std::all_of(guard_, guard_ + kGuard, untouched))
    throw std::logic_error("workspace: written behind its end");
}

Workspace::~Workspace() { guard_ ? std::free(data_) : give_back({data_, size_}); }

bool guard_workspaces(bool on) { return guarded.exchange(on); }

int64_t workspace_held() {
  const std::lock_guard lock(shelf.mutex);
  return shelf.held();
}

int64_t results_held() {
  const std::lock_guard lock(results.mutex);
  return results.held();
}

void release_workspaces() {
  for (Shelf* of : {&shelf, &results}) {
    std::vector<Block> blocks;
    {
      const std::lock_guard lock(of->mutex);
      blocks.swap(of->blocks);
    }
    for (const Block& block : blocks) std::free(block.data);
  }
}

Block take_result(int64_t bytes) noexcept {
  if (bytes >= kSmallResult) {
    const std::lock_guard lock(results.mutex);
    auto& kept = results.blocks;
    auto best = kept.end();
    for (auto block = kept.begin(); block != kept.end(); ++block)
      if (block->size >= bytes && block->size <= 2 * bytes &&
          (best == kept.end() || block->size <= best->size))
        best = block;
    if (best != kept.end()) {
      const Block found = *best;
      kept.erase(best);
      return found;
    }
  }
  if (bytes >= kLargeResult) return aligned_block(bytes);
  // malloc and not aligned_alloc, which is three times slower for small blocks.
  return {static_cast<unsigned char*>(std::malloc(std::size_t(bytes))), bytes};
}

void give_back_result(Block block) noexcept {
  const bool kept = block.size >= kSmallResult && block.size <= kResultsBound &&
                    !guarded.load(std::memory_order_relaxed);
  if (!kept) return std::free(block.data);
  Block surplus[kResultsKept + 1];
  std::size_t count = 0;
  {
    const std::lock_guard lock(results.mutex);
    auto& blocks = results.blocks;
    if (blocks.capacity() == 0) blocks.reserve(kResultsKept + 1);
    blocks.push_back(block);
    for (int64_t held = results.held(); held > kResultsBound || blocks.size() > kResultsKept;) {
      held -= blocks.front().size;
      surplus[count++] = blocks.front();
      blocks.erase(blocks.begin());
    }
  }
  for (std::size_t k = 0; k < count; k++) std::free(surplus[k].data);
}

}  // namespace gatewise

#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace gatewise {

#if defined(__x86_64__)
namespace avx512bf16 {
extern const Table table;
}
namespace avx512 {
extern const Table table;
}
namespace avx2 {
extern const Table table;
}
#endif
namespace base {
extern const Table table;
}
#if defined(GATEWISE_WIDE)
namespace wide {
extern const Table table;
}
#endif

namespace {

#if defined(__x86_64__)
// The processor has the instructions, and the operating system saves their registers (XCR0).
bool has(bool wide) {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA) || !(c & bit_AVX))
    return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const unsigned needed =
      wide ? 0xe6u : 0x06u;  // x87-free: SSE, AVX; with AVX-512 also its masks and registers
  if ((low & needed) != needed) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2) || !(b & bit_BMI2)) return false;
  const unsigned v4 = bit_AVX512F | bit_AVX512DQ | bit_AVX512CD | bit_AVX512BW | bit_AVX512VL;
  return !wide || (b & v4) == v4;
}

bool has_bf16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & bit_AVX512BF16);
}
#endif

std::vector<const Table*> find() {
  std::vector<const Table*> found;
#if defined(__x86_64__)
  if (has(true) && has_bf16()) found.push_back(&avx512bf16::table);
  if (has(true)) found.push_back(&avx512::table);
  if (has(false)) found.push_back(&avx2::table);
#endif
  found.push_back(&base::table);
#if defined(GATEWISE_WIDE)
  found.push_back(&wide::table);
#endif
  return found;
}

const Table* by_name(const std::string& name, const char* who) {
  std::string valid;
  for (const Table* table : supported()) {
    if (name == table->isa) return table;
    valid += std::string(valid.empty() ? "" : ", ") + table->isa;
  }
  throw std::invalid_argument(std::string(who) + ": expected one of " + valid + ", got '" + name +
                              "'. Leave it unset for the best of them.");
}

std::atomic<const Table*> chosen{nullptr};

}  // namespace

const std::vector<const Table*>& supported() {
  static const std::vector<const Table*> tables = find();
  return tables;
}

const Table& active() {
  const Table* table = chosen.load(std::memory_order_acquire);
  if (!table) {
    const char* wanted = std::getenv("GATEWISE_ISA");
    table = wanted && *wanted ? by_name(wanted, "GATEWISE_ISA") : supported().front();
    chosen.store(table, std::memory_order_release);
  }
  return *table;
}

void select(const std::string& name) {
  chosen.store(by_name(name, "isa"), std::memory_order_release);
}

#if defined(GATEWISE_WIDE)
// For tools/emulate.py: a table by name, whether or not this machine has the instructions.
extern "C" __attribute__((visibility("default"))) const Table* gatewise_table(const char* isa) {
#if defined(__x86_64__)
  for (const Table* table : {&avx512bf16::table, &avx512::table})
    if (!std::strcmp(isa, table->isa)) return table;
#endif
  return by_name(isa, "isa");
}
#endif

}  // namespace gatewise

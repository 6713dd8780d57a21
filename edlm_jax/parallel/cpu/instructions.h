// What a kernel is compiled for, and which of it this machine has.
//
// A kernel is a template over one of these structs, inlined whole into a function that carries `target`; vectors are
// GCC's and clang's own, so that one text serves every instruction set.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <string_view>

#define EDLM_INLINE inline __attribute__((always_inline))

namespace edlm {

// `lanes`: floats of a register. `sums`: registers that hold running sums; the others hold what is multiplied.
// `depth`: rows of a matrix that all sums have before they have the next; 0: all of them.
struct Plain {  // SSE2 or NEON, whatever the compiler takes for granted
  typedef float Floats __attribute__((vector_size(16)));
  typedef uint32_t Bits __attribute__((vector_size(16)));
  typedef uint8_t Bytes __attribute__((vector_size(4)));
  static constexpr int lanes = 4;
#if defined(__aarch64__)
  static constexpr int sums = 24;
  static constexpr const char* name = "NEON";
#else
  static constexpr int sums = 12;
  static constexpr const char* name = "no AVX";
#endif
  static constexpr int64_t depth = 64;
};

#if defined(__x86_64__)
struct Avx2 {
  typedef float Floats __attribute__((vector_size(32)));
  typedef uint32_t Bits __attribute__((vector_size(32)));
  typedef uint8_t Bytes __attribute__((vector_size(8)));
  static constexpr int lanes = 8, sums = 12;
  static constexpr int64_t depth = 64;
};

struct Avx512 {
  typedef float Floats __attribute__((vector_size(64)));
  typedef uint32_t Bits __attribute__((vector_size(64)));
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  static constexpr int lanes = 16, sums = 16;
  static constexpr int64_t depth = 0;
};

#define EDLM_AVX2 __attribute__((target("avx2,fma")))
#define EDLM_AVX512 __attribute__((target("avx512f,avx2,fma")))
#endif

// The widest of three versions of a function that this machine runs; EDLM_CPU=avx2 or plain asks for no wider one.
template <class F>
F* widest([[maybe_unused]] F* avx512, [[maybe_unused]] F* avx2, F* plain) {
#if defined(__x86_64__)
  const char* asked = std::getenv("EDLM_CPU");
  const std::string_view most = asked ? asked : "";
  if (most.empty() && __builtin_cpu_supports("avx512f")) return avx512;
  if (most != "plain" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2;
#endif
  return plain;
}

template <class V, class T>
EDLM_INLINE void load(V& vector, const T* from) {
  __builtin_memcpy(&vector, from, sizeof vector);
}

template <class V, class T>
EDLM_INLINE void store(T* to, const V& vector) {
  __builtin_memcpy(to, &vector, sizeof vector);
}

// Lane on lane: always in the same order.
template <class I>
EDLM_INLINE float total(const typename I::Floats& x) {
  float lanes[I::lanes];
  store(lanes, x);
#pragma GCC unroll 4
  for (int half = I::lanes / 2; half; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

}  // namespace edlm

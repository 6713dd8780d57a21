// Root-mean-square norm of rows, summed lane by lane and then lane on lane: a row's bits depend on the row alone.

#include <cmath>
#include <cstring>

#include "instructions.h"
#include "threads.h"

namespace edlm {
namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::Buffer<ffi::F32>;

struct Task {
  const float *x, *scale;
  float* out;
  int64_t rows, width;
  float eps;
};

template <class I>
EDLM_INLINE void normalise(const Task& t) {
  const int64_t whole = t.width / I::lanes * I::lanes, rest = (t.width - whole) * sizeof(float);
  for (int64_t row = 0; row < t.rows; ++row) {
    const float* x = t.x + row * t.width;
    float* out = t.out + row * t.width;
    typename I::Floats sums{}, part, scale{};
    for (int64_t d = 0; d < whole; d += I::lanes) {
      load(part, x + d);
      sums += part * part;
    }
    if (rest) {
      part = typename I::Floats{};
      std::memcpy(&part, x + whole, rest);
      sums += part * part;
    }
    const float share = 1 / std::sqrt(total<I>(sums) / t.width + t.eps);
    for (int64_t d = 0; d < whole; d += I::lanes) {
      load(part, x + d);
      load(scale, t.scale + d);
      store(out + d, part * share * scale);
    }
    if (rest) {
      std::memcpy(&part, x + whole, rest);
      std::memcpy(&scale, t.scale + whole, rest);
      part = part * share * scale;
      std::memcpy(out + whole, &part, rest);
    }
  }
}

using Normalise = void(const Task&);

void normalise_plain(const Task& t) { normalise<Plain>(t); }
#if defined(__x86_64__)
EDLM_AVX2 void normalise_avx2(const Task& t) { normalise<Avx2>(t); }
EDLM_AVX512 void normalise_avx512(const Task& t) { normalise<Avx512>(t); }
#else
constexpr Normalise *normalise_avx2 = nullptr, *normalise_avx512 = nullptr;
#endif

ffi::Error norm(Buffer x, Buffer scale, float eps, ffi::Result<Buffer> out) {
  static auto* const normalise = widest<Normalise>(normalise_avx512, normalise_avx2, normalise_plain);
  const auto shape = x.dimensions();
  normalise({x.typed_data(), scale.typed_data(), out->typed_data(), shape[0], shape[1], eps});
  return ffi::Error::Success();
}

}  // namespace
}  // namespace edlm

EDLM_EXPORT(edlm_norm);
XLA_FFI_DEFINE_HANDLER_SYMBOL(edlm_norm, edlm::norm,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<float>("eps")
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>());

// Few rows times a matrix of strips (strips.h), and with an adapter beside it: the calls that XLA makes.
//
// An adapter adds (x A) B to some of the rows within the same call. Each strip of B has `depth` rows, those from `from` on
// of its own: where several matrices are fused, the others are zero.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "strips.h"
#include "threads.h"

namespace edlm {
namespace {

namespace ffi = xla::ffi;

// Takes the rows that are computed, and spreads them where that helps: rows a multiple of 4 KB apart fall on the same
// few lines of the nearest cache (a twentieth slower; 2 KB apart as fast as others).
std::unique_ptr<float[]> gather(Task& t, const std::vector<int64_t>& to) {
  constexpr int64_t kLines = 1024, kPad = 16;  // floats
  const int64_t rows = to.size(), stride = t.width + (t.width % kLines ? 0 : kPad);
  const bool in_place = rows == t.rows && std::is_sorted(to.begin(), to.end());
  t.to = to.data();
  if (in_place && (rows == 1 || stride == t.width)) return {};
  std::unique_ptr<float[]> x(new float[rows * stride]);  // std::vector would write zeros first
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(x.get() + r * stride, t.x + to[r] * t.width, t.width * sizeof(float));
  }
  t.x = x.get();
  t.x_stride = stride;
  t.rows = rows;
  return x;
}

int64_t cost(const Task& t) { return t.width * kStrip * (std::min(t.rows, kBlock) + 3); }  // 3: the reading

// The rows of x [M, D] that are computed, `wanted` [M] or all if that is empty: those before which `last` [M] is false,
// then the others; what is not computed is zero.
std::vector<int64_t> rows_of(const Task& t, const ffi::Buffer<ffi::PRED>& wanted, const bool* last, int64_t& first) {
  std::vector<int64_t> to, others;
  for (int64_t row = 0; row < t.rows; ++row) {
    if (wanted.element_count() == 0 || wanted.typed_data()[row]) {
      (last && last[row] ? others : to).push_back(row);
    } else {
      std::memset(t.out + row * t.columns, 0, t.columns * sizeof(float));
    }
  }
  first = to.size();
  to.insert(to.end(), others.begin(), others.end());
  return to;
}

Task task_of(const ffi::Buffer<ffi::F32>& x, const ffi::AnyBuffer& w, ffi::Result<ffi::Buffer<ffi::F32>>& out) {
  const auto shape = x.dimensions();
  return {x.typed_data(), shape[1], shape[0], shape[1], out->dimensions()[1], w.untyped_data(), out->typed_data(),
          nullptr, multiply_by(w)};
}

bool fits(const Task& t, const ffi::AnyBuffer& w) {
  return t.multiply && w.dimensions()[0] == t.strips() && w.dimensions()[1] == t.width;
}

ffi::Error product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::AnyBuffer w, ffi::Buffer<ffi::PRED> wanted,
                   ffi::Result<ffi::Buffer<ffi::F32>> out) {
  Task t = task_of(x, w, out);
  if (!fits(t, w)) return ffi::Error::InvalidArgument("weights do not fit");
  int64_t first;
  const auto to = rows_of(t, wanted, nullptr, first);
  const auto owned = gather(t, to);
  deal(pool, t.items(), cost(t), [t](int64_t begin, int64_t end) { t.multiply(t, begin, end); });
  return ffi::Error::Success();
}

// Whoever takes strips of w first takes those of A that are left, and waits only for others who have begun theirs.
struct Adapted {
  Task w, a, b;
  std::atomic<int64_t> next{0}, done{0};

  void work(int64_t begin, int64_t end) {
    const int64_t items = a.items();
    for (int64_t item; (item = next.fetch_add(1)) < items; done.fetch_add(1)) a.multiply(a, item, item + 1);
    w.multiply(w, begin, end);
    while (done.load() < items) std::this_thread::yield();
    b.multiply(b, begin, end);
  }
};

// x w, and (x A) B beside it in the rows that are `adapted` [M]: A and B are strips, B's those rows from `from` on.
ffi::Error adapted_product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::AnyBuffer w,
                           ffi::Buffer<ffi::PRED> wanted, ffi::Buffer<ffi::PRED> adapted, ffi::AnyBuffer a,
                           ffi::AnyBuffer b, ffi::Buffer<ffi::S32> from, ffi::Result<ffi::Buffer<ffi::F32>> out) {
  Adapted work{task_of(x, w, out)};
  Task& t = work.w;
  const auto to = rows_of(t, wanted, adapted.typed_data(), work.b.first);
  const auto owned = gather(t, to);
  std::vector<int64_t> own(t.rows);
  std::iota(own.begin(), own.end(), 0);
  const int64_t rank = a.dimensions()[0] * kStrip, depth = b.dimensions()[1], first = work.b.first;
  std::unique_ptr<float[]> low(new float[t.rows * rank]);
  work.a = {t.x, t.x_stride, t.rows, t.width, rank, a.untyped_data(), low.get(), own.data(), multiply_by(a), first};
  work.b = {low.get(), rank, t.rows, depth, t.columns, b.untyped_data(), t.out, to.data(), multiply_by(b), first,
            from.typed_data(), true};
  if (!fits(t, w) || !fits(work.a, a) || !fits(work.b, b)) return ffi::Error::InvalidArgument("weights do not fit");
  deal(pool, t.items(), cost(t), [&work](int64_t begin, int64_t end) { work.work(begin, end); });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace edlm

// By name, for a person who measures.
extern "C" __attribute__((visibility("default"))) const char* edlm_instructions() {
  return edlm::widest<const char>("AVX-512", "AVX2", edlm::Plain::name);
}

EDLM_EXPORT(edlm_product_of_rows);
XLA_FFI_DEFINE_HANDLER_SYMBOL(edlm_product_of_rows, edlm::product,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::PRED>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>());

EDLM_EXPORT(edlm_adapted_product);
XLA_FFI_DEFINE_HANDLER_SYMBOL(edlm_adapted_product, edlm::adapted_product,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::PRED>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::PRED>>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>());

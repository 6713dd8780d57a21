// Few rows times a matrix that was laid out for it: x [M, D] times w [D, F], float32 sums.
//
// The matrix lies in strips of 32 columns, [F / 32, D, 32], so that a product reads it once, from front to back,
// whatever the number of rows: 12 rows by 32 columns of sums stay in registers (AVX-512). As bfloat16 it is
// [F / 32, D, 16, 2]: columns c and 16 + c of a strip share 32 bits and are widened by a shift and by a mask.
//
// Every sum runs over D from 0 up, one product at a time: its bits depend on its row and its column, on nothing else.
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

#include "instructions.h"
#include "threads.h"

namespace edlm {
namespace {

namespace ffi = xla::ffi;

constexpr int kStrip = 32, kHalf = kStrip / 2;
constexpr int64_t kBlock = 96;  // rows that share one reading of a strip: their products outweigh it

struct Task;
using Multiply = void(const Task&, int64_t, int64_t);

struct Task {
  const float* x;
  int64_t x_stride, rows, width, columns;
  const void* w;
  float* out;
  const int64_t* to;              // the row of `out` that each row's sums are
  Multiply* multiply;             // of items, for the numbers that w holds
  int64_t first = 0;              // rows before this one are left out
  const int32_t* from = nullptr;  // where in a row of x each strip's sums begin
  bool add = false;               // to what `out` holds

  int64_t strips() const { return (columns + kStrip - 1) / kStrip; }
  int64_t items() const { return strips() * ((rows + kBlock - 1) / kBlock); }
};

// Columns c and 16 + c, as many as a register has lanes, of one row of a strip.
template <class I>
EDLM_INLINE void widen(const float* w, typename I::Floats& low, typename I::Floats& high) {
  load(low, w);
  load(high, w + kHalf);
}

template <class I>
EDLM_INLINE void widen(const uint32_t* w, typename I::Floats& low, typename I::Floats& high) {
  typename I::Bits bits;
  load(bits, w);
  low = (typename I::Floats)(bits << 16);
  high = (typename I::Floats)(bits & 0xffff0000u);
}

// R rows of sums over P pairs of registers from column c on. With each row of w, `step` bytes from `next` on are asked
// for: what is read after this, so that memory does not wait while sums are many.
template <class I, class W, int R, int P>
EDLM_INLINE void sum(const Task& t, const float* x, const W* w, int c, const char* next, int64_t step,
                     float (*sums)[kStrip]) {
  typename I::Floats low[R][P] = {}, high[R][P] = {};
  for (int64_t d = 0; d < t.width; ++d) {
    for (int64_t line = 0; line < step; line += 64) __builtin_prefetch(next + line, 0, 2);
    next += step;
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      typename I::Floats w_low, w_high;
      widen<I>(w + p * I::lanes, w_low, w_high);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const float value = x[r * t.x_stride + d];
        low[r][p] += value * w_low;
        high[r][p] += value * w_high;
      }
    }
    w += std::is_same_v<W, float> ? kStrip : kHalf;
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      store(sums[r] + c + p * I::lanes, low[r][p]);
      store(sums[r] + kHalf + c + p * I::lanes, high[r][p]);
    }
  }
}

// The most pairs of registers that R rows of sums leave room for.
template <class I>
constexpr int pairs(int rows) {
  int pairs = kHalf / I::lanes;
  while (pairs > 1 && 2 * pairs * rows > I::sums) pairs /= 2;
  return pairs;
}

template <class I, class W, int R>
EDLM_INLINE void sum_rows(const Task& t, int64_t row, int64_t strip, const W* w, const char* next, int64_t step) {
  constexpr int P = pairs<I>(R);
  float sums[R][kStrip];
  const float* x = t.x + row * t.x_stride + (t.from ? t.from[strip] : 0);
  for (int c = 0; c < kHalf; c += P * I::lanes) sum<I, W, R, P>(t, x, w + c, c, next, c ? 0 : step, sums);
  const int64_t first = strip * kStrip, size = std::min<int64_t>(kStrip, t.columns - first);
  for (int r = 0; r < R; ++r) {
    float* out = t.out + t.to[row + r] * t.columns + first;
    if (t.add) {
      for (int64_t i = 0; i < size; ++i) out[i] += sums[r][i];
    } else {
      std::memcpy(out, sums[r], size * sizeof(float));
    }
  }
}

template <class I, class W, int R = I::sums / 2>
EDLM_INLINE void sum_group(int64_t rows, const Task& t, int64_t row, int64_t strip, const W* w, const char* next,
                           int64_t step) {
  if constexpr (R > 0) {
    if (rows == R) {
      sum_rows<I, W, R>(t, row, strip, w, next, step);
    } else {
      sum_group<I, W, R - 1>(rows, t, row, strip, w, next, step);
    }
  }
}

// Items are the strips of one block of rows after the other; rows are taken in even groups.
template <class I, class W>
EDLM_INLINE void multiply(const Task& t, int64_t begin, int64_t end) {
  constexpr int64_t kMost = I::sums / 2, kRow = std::is_same_v<W, float> ? kStrip : kHalf;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t strip = item % t.strips(), block = item / t.strips() * kBlock, first = std::max(block, t.first);
    const int64_t rows = std::min(block + kBlock, t.rows) - first, groups = (rows + kMost - 1) / kMost;
    if (rows <= 0) continue;
    const W* w = static_cast<const W*>(t.w) + strip * t.width * kRow;
    const bool more = item + 1 < end && strip + 1 < t.strips();
    const int64_t step = more ? kRow * sizeof(W) / groups : 0;
    const char* next = reinterpret_cast<const char*>(w + (more ? t.width * kRow : 0));
    for (int64_t g = 0, row = 0; g < groups; ++g) {
      const int64_t size = (rows - row + groups - g - 1) / (groups - g);
      sum_group<I, W>(size, t, first + row, strip, w, next, step);
      next += step * t.width;
      row += size;
    }
  }
}

template <class W>
void multiply_plain(const Task& t, int64_t begin, int64_t end) {
  multiply<Plain, W>(t, begin, end);
}
#if defined(__x86_64__)
template <class W>
EDLM_AVX2 void multiply_avx2(const Task& t, int64_t begin, int64_t end) {
  multiply<Avx2, W>(t, begin, end);
}
template <class W>
EDLM_AVX512 void multiply_avx512(const Task& t, int64_t begin, int64_t end) {
  multiply<Avx512, W>(t, begin, end);
}
#else
template <class W>
constexpr Multiply *multiply_avx2 = nullptr, *multiply_avx512 = nullptr;
#endif

template <class W>
Multiply* multiply_widest() {
  static auto* const found = widest<Multiply>(multiply_avx512<W>, multiply_avx2<W>, multiply_plain<W>);
  return found;
}

// nullptr: w holds no numbers that can be read.
Multiply* multiply_by(const ffi::AnyBuffer& w) {
  if (w.element_type() == ffi::F32) return multiply_widest<float>();
  if (w.element_type() == ffi::U16) return multiply_widest<uint32_t>();
  return nullptr;
}

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

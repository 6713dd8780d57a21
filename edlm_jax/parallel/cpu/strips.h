// Rows times a matrix that was laid out for them: x [M, D] times w [D, F], float32 sums.
//
// The matrix lies in strips of 32 columns, [F / 32, D, 32], so that a product reads it once, from front to back,
// whatever the number of rows: 8 rows by 32 columns of sums stay in registers (AVX-512). Where fewer do, a strip is
// taken in pieces that the nearest cache keeps until all sums have had them. As bfloat16 it is
// [F / 32, D, 16, 2]: columns c and 16 + c of a strip share 32 bits and are widened by a shift and by a mask.
//
// Every sum runs over D from 0 up, one product at a time: its bits depend on its row and its column, on nothing else.

#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "instructions.h"
#include "xla/ffi/api/ffi.h"

namespace edlm {

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

// What is asked of memory while sums run, so that it does not wait where they are many: `step` bytes from `at` on with
// each row of w.
struct Ahead {
  const char* at;
  int64_t step;
};

// R rows of sums over P pairs of registers from column c on, of `depth` products more than `sums` has, if it has any.
template <class I, class W, int R, int P>
EDLM_INLINE void sum(const float* x, int64_t x_stride, const W* w, int64_t depth, bool begun, Ahead ahead, int c,
                     float (*sums)[kStrip]) {
  constexpr int kRow = std::is_same_v<W, float> ? kStrip : kHalf;
  constexpr bool kWhole = P * I::lanes == kHalf;  // else `step` is a line at most, and a loop over lines costs time
  typename I::Floats low[R][P] = {}, high[R][P] = {};
  if (begun) {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        load(low[r][p], sums[r] + c + p * I::lanes);
        load(high[r][p], sums[r] + kHalf + c + p * I::lanes);
      }
    }
  }
  for (int64_t d = 0; d < depth; ++d) {
    for (int64_t line = 0; line < (kWhole ? ahead.step : 1); line += 64) __builtin_prefetch(ahead.at + line, 0, 2);
    ahead.at += ahead.step;
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      typename I::Floats w_low, w_high;
      widen<I>(w + p * I::lanes, w_low, w_high);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const float value = x[r * x_stride + d];
        low[r][p] += value * w_low;
        high[r][p] += value * w_high;
      }
    }
    w += kRow;
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

// A piece of a strip: `depth` rows of w from row d on.
template <class W>
struct Piece {
  const W* w;
  int64_t d, depth;
};

template <class I, class W, int R>
EDLM_INLINE void sum_rows(const float* x, int64_t x_stride, const Piece<W>& piece, Ahead ahead,
                          float (*sums)[kStrip]) {
  constexpr int P = pairs<I>(R), kPasses = kHalf / (P * I::lanes);
  ahead.step /= kPasses;
  for (int c = 0; c < kHalf; c += P * I::lanes, ahead.at += ahead.step * piece.depth) {
    sum<I, W, R, P>(x, x_stride, piece.w + c, piece.depth, piece.d > 0, ahead, c, sums);
  }
}

template <class I, class W, int R = I::sums / 2>
EDLM_INLINE void sum_group(int64_t rows, const float* x, int64_t x_stride, const Piece<W>& piece, const Ahead& ahead,
                           float (*sums)[kStrip]) {
  if constexpr (R > 0) {
    if (rows == R) {
      sum_rows<I, W, R>(x, x_stride, piece, ahead, sums);
    } else {
      sum_group<I, W, R - 1>(rows, x, x_stride, piece, ahead, sums);
    }
  }
}

// Puts the sums of `rows` rows from `row` on where they belong.
EDLM_INLINE void put(const Task& t, int64_t strip, int64_t row, int64_t rows, const float (*sums)[kStrip]) {
  const int64_t first = strip * kStrip, size = std::min<int64_t>(kStrip, t.columns - first);
  for (int64_t r = 0; r < rows; ++r) {
    float* out = t.out + t.to[row + r] * t.columns + first;
    if (t.add) {
      for (int64_t i = 0; i < size; ++i) out[i] += sums[r][i];
    } else {
      std::memcpy(out, sums[r], size * sizeof(float));
    }
  }
}

// Items are the strips of one block of rows after the other; rows are taken in even groups.
template <class I, class W>
EDLM_INLINE void multiply(const Task& t, int64_t begin, int64_t end) {
  constexpr int64_t kMost = I::sums / 2, kRow = std::is_same_v<W, float> ? kStrip : kHalf;
  float sums[kBlock][kStrip];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t strip = item % t.strips(), block = item / t.strips() * kBlock, first = std::max(block, t.first);
    const int64_t rows = std::min(block + kBlock, t.rows) - first, groups = (rows + kMost - 1) / kMost;
    if (rows <= 0) continue;
    const W* w = static_cast<const W*>(t.w) + strip * t.width * kRow;
    const float* x = t.x + first * t.x_stride + (t.from ? t.from[strip] : 0);
    const bool another = item + 1 < end && strip + 1 < t.strips();
    const int64_t most = I::depth ? I::depth : t.width;
    for (int64_t d = 0; d < t.width; d += most) {
      const Piece<W> piece{w + d * kRow, d, std::min(most, t.width - d)};
      const bool more = another || d + most < t.width;
      Ahead ahead{reinterpret_cast<const char*>(piece.w + (more ? piece.depth * kRow : 0)),
                  more ? static_cast<int64_t>(kRow * sizeof(W)) / groups : 0};
      for (int64_t g = 0, row = 0; g < groups; ++g, ahead.at += ahead.step * piece.depth) {
        const int64_t size = (rows - row + groups - g - 1) / (groups - g);
        sum_group<I, W>(size, x + row * t.x_stride + d, t.x_stride, piece, ahead, sums + row);
        row += size;
      }
    }
    put(t, strip, first, rows, sums);
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
inline Multiply* multiply_by(const xla::ffi::AnyBuffer& w) {
  if (w.element_type() == xla::ffi::F32) return multiply_widest<float>();
  if (w.element_type() == xla::ffi::U16) return multiply_widest<uint32_t>();
  return nullptr;
}

}  // namespace edlm

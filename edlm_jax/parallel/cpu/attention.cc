// Attention over a cache, and the cache's update in place.
//
// q [B, T, N, H], keys and values [pages, K, P, H], table [B, G], mask [B, T, S]; S = G * P. A row's columns lie in the
// pages that its table names, P in each, in their order; with one page a row that is a plain cache. A page below zero is
// none: what is written there is lost, and nobody may see it. The queries that share a head's keys are taken four at a
// time: all their scores, their softmax, then the sum of values.
//
// A query's bits depend on its own visible columns, in their order, and on nothing else: a score is summed over H lane
// by lane and then lane on lane, values and weights are summed from the first column to the last, and what the mask
// hides adds zero. So they are the same alone, in a block, in any batch, in any pages and behind any padding.

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "instructions.h"
#include "threads.h"

namespace edlm {
namespace {

namespace ffi = xla::ffi;

constexpr int kRows = 4;  // queries of a tile

struct Task {
  const float *q, *k, *v;
  const int32_t* table;
  const bool* mask;
  float* out;
  int64_t B, T, N, H, K, P, G, S;

  int64_t group() const { return N / K; }
  int64_t tiles() const { return (group() * T + kRows - 1) / kRows; }
};

// e^x for x <= 0, by 2^n times a polynomial of what is left; 0 below the smallest normal number.
template <class I>
EDLM_INLINE void exponential(typename I::Floats& x) {
  using Floats = typename I::Floats;
  using Bits = typename I::Bits;
  constexpr float kLeast = -87.0f, kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Bits counts = (Bits)(x > kLeast);
  x = (Floats)((Bits)x & counts);
  const Floats shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  const Bits power = ((Bits)shifted + 127u) << 23;  // the low bits of `shifted` are n
  x = (Floats)((Bits)(p * (Floats)power) & counts);
}

#if defined(__clang__)
#define EDLM_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define EDLM_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, typename I::Bits{__VA_ARGS__})
#endif

// From four registers a, b, c, d, one to a column, their sums over every fourth lane: a b c d, a b c d, ...
template <class I>
EDLM_INLINE void fold_four(typename I::Floats* x) {
  const auto &a = x[0], &b = x[1], &c = x[2], &d = x[3];
  if constexpr (I::lanes == 4) {
    const auto ab = EDLM_SHUFFLE(a, b, 0, 4, 1, 5) + EDLM_SHUFFLE(a, b, 2, 6, 3, 7);
    const auto cd = EDLM_SHUFFLE(c, d, 0, 4, 1, 5) + EDLM_SHUFFLE(c, d, 2, 6, 3, 7);
    x[0] = EDLM_SHUFFLE(ab, cd, 0, 1, 4, 5) + EDLM_SHUFFLE(ab, cd, 2, 3, 6, 7);
  } else if constexpr (I::lanes == 8) {
    const auto ab = EDLM_SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13) + EDLM_SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    const auto cd = EDLM_SHUFFLE(c, d, 0, 8, 1, 9, 4, 12, 5, 13) + EDLM_SHUFFLE(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
    x[0] = EDLM_SHUFFLE(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) + EDLM_SHUFFLE(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
  } else {
    const auto ab = EDLM_SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
                    EDLM_SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    const auto cd = EDLM_SHUFFLE(c, d, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
                    EDLM_SHUFFLE(c, d, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    x[0] = EDLM_SHUFFLE(ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           EDLM_SHUFFLE(ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
}

// From as many of those as there are fours in a register, the totals of all their columns in order.
template <class I>
EDLM_INLINE void fold_all(typename I::Floats* x) {
  if constexpr (I::lanes == 8) {
    x[0] = EDLM_SHUFFLE(x[0], x[1], 0, 1, 2, 3, 8, 9, 10, 11) + EDLM_SHUFFLE(x[0], x[1], 4, 5, 6, 7, 12, 13, 14, 15);
  } else if constexpr (I::lanes == 16) {
    for (int i = 0; i < 4; i += 2) {
      x[i] = EDLM_SHUFFLE(x[i], x[i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
             EDLM_SHUFFLE(x[i], x[i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
    x[0] = EDLM_SHUFFLE(x[0], x[2], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           EDLM_SHUFFLE(x[0], x[2], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
}

// Where the columns of one row and head lie: column s of its page g is the one of number places[g] + s in all pages.
struct Columns {
  const int64_t* places;
  int64_t P;
};

// Asks for what is read next, of which no stream of reads tells the processor.
EDLM_INLINE void ahead(const float* next) {
#pragma GCC unroll 4
  for (int line = 0; line < 4; ++line) __builtin_prefetch(next + 16 * line);
}

// Scores of R queries, `stride` floats apart, with the keys of columns [begin, end), whole registers of them: past the
// last column that one over again. They lie behind one another from k on. H is padded with zeros in q alone.
template <class I, int R>
EDLM_INLINE void score(const float* q, int64_t stride, const float* k, int64_t H, int64_t begin, int64_t end,
                       float* scores, int64_t room) {
  constexpr int kFours = I::lanes / 4;
  const int64_t whole = H / I::lanes * I::lanes, rest = (H - whole) * sizeof(float);
  for (int64_t s = begin; s < end; s += I::lanes) {
    typename I::Floats folded[R][kFours];
#pragma GCC unroll 4
    for (int f = 0; f < kFours; ++f) {
      const float* columns[4];
      for (int a = 0; a < 4; ++a) columns[a] = k + (std::min(s + 4 * f + a, end - 1) - begin) * H;
      typename I::Floats sums[R][4] = {}, q_part, k_part[4];
      for (int64_t h = 0; h < whole; h += I::lanes) {
#pragma GCC unroll 4
        for (int a = 0; a < 4; ++a) load(k_part[a], columns[a] + h);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          load(q_part, q + r * stride + h);
#pragma GCC unroll 4
          for (int a = 0; a < 4; ++a) sums[r][a] += q_part * k_part[a];
        }
      }
      if (rest) {
#pragma GCC unroll 4
        for (int a = 0; a < 4; ++a) {
          k_part[a] = typename I::Floats{};
          std::memcpy(&k_part[a], columns[a] + whole, rest);
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          load(q_part, q + r * stride + whole);
#pragma GCC unroll 4
          for (int a = 0; a < 4; ++a) sums[r][a] += q_part * k_part[a];
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        fold_four<I>(sums[r]);
        folded[r][f] = sums[r][0];
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      fold_all<I>(folded[r]);
      store(scores + r * room + s, folded[r][0]);
    }
  }
}

// The same, of half of the queries at a time where registers have no room for four sums of each.
template <class I, int R>
EDLM_INLINE void score_all(const float* q, int64_t stride, const float* k, int64_t H, int64_t begin, int64_t end,
                           float* scores, int64_t room) {
  if constexpr (4 * R <= I::sums) {
    score<I, R>(q, stride, k, H, begin, end, scores, room);
  } else {
    constexpr int kHalf = R / 2;
    score<I, kHalf>(q, stride, k, H, begin, end, scores, room);
    score<I, R - kHalf>(q + kHalf * stride, stride, k, H, begin, end, scores + kHalf * room, room);
  }
}

// Where `mask` has all bits x, elsewhere y.
template <class I>
EDLM_INLINE void choose(typename I::Floats& x, const typename I::Bits& mask, const typename I::Floats& y) {
  x = (typename I::Floats)(((typename I::Bits)x & mask) | ((typename I::Bits)y & ~mask));
}

// Scores of columns [begin, end), whole registers of them, become weights: 0 for what is not seen.
template <class I>
EDLM_INLINE void weigh(float* scores, const uint8_t* seen, int64_t begin, int64_t end) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const typename I::Floats never = typename I::Floats{} + kNever;
  typename I::Floats x, tops = never;
  for (int64_t s = begin; s < end; s += I::lanes) {
    typename I::Bytes bytes;
    load(bytes, seen + s);
    load(x, scores + s);
    choose<I>(x, -__builtin_convertvector(bytes, typename I::Bits), never);
    store(scores + s, x);
    choose<I>(tops, (typename I::Bits)(tops > x), x);
  }
  float lanes[I::lanes], top = kNever;
  store(lanes, tops);
  for (float lane : lanes) top = std::max(top, lane);
  if (top == kNever) top = 0;  // sees nothing: all weights are zero
  for (int64_t s = begin; s < end; s += I::lanes) {
    load(x, scores + s);
    x -= top;
    exponential<I>(x);
    store(scores + s, x);
  }
}

// Weighted sums of values of R queries over V registers of H, or over the first `size` bytes of one.
template <class I, int R, int V, bool part = false>
EDLM_INLINE void mix(const float* weights, int64_t room, const float* v, const Columns& columns, int64_t H,
                     int64_t begin, int64_t end, float* out, int64_t stride, int64_t size = 0) {
  typename I::Floats sums[R][V] = {}, values{};
  for (int64_t page = begin / columns.P, s = begin; s < end; ++page) {
    const int64_t stop = std::min(end, (page + 1) * columns.P);
    const float* column = v + (columns.places[page] + s) * H;
    if (stop < end) ahead(v + (columns.places[page + 1] + stop) * H);
    for (; s < stop; ++s, column += H) {
#pragma GCC unroll 4
      for (int i = 0; i < V; ++i) {
        if constexpr (part) {
          std::memcpy(&values, column, size);
        } else {
          load(values, column + i * I::lanes);
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sums[r][i] += weights[r * room + s] * values;
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < V; ++i) store(out + r * stride + i * I::lanes, sums[r][i]);
  }
}

template <class I, int R>
EDLM_INLINE void mix_all(const float* weights, int64_t room, const float* v, const Columns& c, int64_t H,
                         int64_t begin, int64_t end, float* out, int64_t stride) {
  constexpr int V = I::sums / kRows >= 4 ? 4 : 2;
  int64_t h = 0;
  for (; h + V * I::lanes <= H; h += V * I::lanes) mix<I, R, V>(weights, room, v + h, c, H, begin, end, out + h, stride);
  const int64_t registers = (H - h) / I::lanes;
  if (V > 3 && registers == 3) mix<I, R, 3>(weights, room, v + h, c, H, begin, end, out + h, stride);
  if (V > 2 && registers == 2) mix<I, R, 2>(weights, room, v + h, c, H, begin, end, out + h, stride);
  if (registers == 1) mix<I, R, 1>(weights, room, v + h, c, H, begin, end, out + h, stride);
  h += registers * I::lanes;
  if (h < H) mix<I, R, 1, true>(weights, room, v + h, c, H, begin, end, out + h, stride, (H - h) * sizeof(float));
}

constexpr int64_t whole(int64_t size) { return (size + 15) / 16 * 16; }  // registers, of every instruction set

// What a tile works on: queries and results [4, H], scores [4, S] and what may be seen [4, S], padded; its pages.
struct Scratch {
  explicit Scratch(const Task& t)
      : stride(whole(t.H)), room(whole(t.S)), floats(kRows * (2 * stride + room)), seen(kRows * room),
        places(t.G) {}

  int64_t stride, room;
  std::vector<float> floats;
  std::vector<uint8_t> seen;
  std::vector<int64_t> places;
};

template <class I, int R>
EDLM_INLINE void attend_tile(const Task& t, int64_t b, int64_t head, int64_t first, Scratch& scratch) {
  const int64_t H = t.H, group = t.group(), stride = scratch.stride, room = scratch.room;
  float *q = scratch.floats.data(), *out = q + kRows * stride, *weights = out + kRows * stride;
  const float scale = 1 / std::sqrt(static_cast<float>(H));
  int64_t begin = t.S, end = 0, at[R];
  for (int r = 0; r < R; ++r) {
    const int64_t column = (first + r) / group, n = head * group + (first + r) % group;
    at[r] = ((b * t.T + column) * t.N + n) * H;
    for (int64_t h = 0; h < H; ++h) q[r * stride + h] = t.q[at[r] + h] * scale;
    const bool* mask = t.mask + (b * t.T + column) * t.S;
    std::memcpy(scratch.seen.data() + r * room, mask, t.S);
    if (const void* seen = std::memchr(mask, 1, t.S)) {
      begin = std::min<int64_t>(begin, static_cast<const bool*>(seen) - mask);
      int64_t last = t.S;
      while (last > end && !mask[last - 1]) --last;
      end = std::max(end, last);
    }
  }
  const int64_t first_seen = std::min(begin, end);  // of values: a NaN before it, of an earlier row, stays one times zero
  begin = first_seen / 16 * 16;
  const Columns columns{scratch.places.data(), t.P};
  const int64_t first_page = begin / t.P, pages = (end + t.P - 1) / t.P;
  for (int64_t page = first_page; page < pages; ++page) {
    const int64_t place = std::max(t.table[b * t.G + page], 0);
    scratch.places[page] = ((place * t.K + head) - page) * t.P;
  }
  for (int64_t page = first_page, s = begin; page < pages; ++page) {
    const int64_t stop = std::min(end, (page + 1) * t.P);
    if (stop < end) ahead(t.k + (columns.places[page + 1] + stop) * H);
    score_all<I, R>(q, stride, t.k + (columns.places[page] + s) * H, H, s, stop, weights, room);
    s = stop;
  }
  for (int r = 0; r < R; ++r) weigh<I>(weights + r * room, scratch.seen.data() + r * room, begin, whole(end));
  mix_all<I, R>(weights, room, t.v, columns, H, first_seen, end, out, stride);
  float sums[R] = {};
  for (int64_t s = begin; s < end; ++s) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sums[r] += weights[r * room + s];
  }
  for (int r = 0; r < R; ++r) {
    const float share = sums[r] > 0 ? 1 / sums[r] : 0;
    for (int64_t h = 0; h < H; ++h) t.out[at[r] + h] = out[r * stride + h] * share;
  }
}

// Items are tiles, those of one head's keys after one another.
template <class I>
EDLM_INLINE void attend(const Task& t, int64_t begin, int64_t end) {
  Scratch scratch(t);
  const int64_t rows = t.group() * t.T;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item % t.tiles() * kRows, head = item / t.tiles() % t.K, b = item / t.tiles() / t.K;
    switch (std::min<int64_t>(kRows, rows - first)) {
      case 1: attend_tile<I, 1>(t, b, head, first, scratch); break;
      case 2: attend_tile<I, 2>(t, b, head, first, scratch); break;
      case 3: attend_tile<I, 3>(t, b, head, first, scratch); break;
      default: attend_tile<I, 4>(t, b, head, first, scratch);
    }
  }
}

using Attend = void(const Task&, int64_t, int64_t);

void attend_plain(const Task& t, int64_t begin, int64_t end) { attend<Plain>(t, begin, end); }
#if defined(__x86_64__)
EDLM_AVX2 void attend_avx2(const Task& t, int64_t begin, int64_t end) { attend<Avx2>(t, begin, end); }
EDLM_AVX512 void attend_avx512(const Task& t, int64_t begin, int64_t end) { attend<Avx512>(t, begin, end); }
#else
constexpr Attend *attend_avx2 = nullptr, *attend_avx512 = nullptr;
#endif

using Floats = ffi::Buffer<ffi::F32>;
using Table = ffi::Buffer<ffi::S32>;

ffi::Error attention(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Table table, ffi::Buffer<ffi::PRED> mask,
                     ffi::Result<Floats> out) {
  static auto* const attend = widest<Attend>(attend_avx512, attend_avx2, attend_plain);
  const auto queries = q.dimensions(), keys = k.dimensions(), pages = table.dimensions();
  if (pages[1] > 1 && keys[2] % 16) return ffi::Error::InvalidArgument("a page must have a multiple of 16 columns");
  const Task t{q.typed_data(),    k.typed_data(),    v.typed_data(), table.typed_data(),
               mask.typed_data(), out->typed_data(), queries[0],     queries[1],
               queries[2],        queries[3],        keys[1],        keys[2],
               pages[1],          pages[1] * keys[2]};
  const int64_t items = t.B * t.K * t.tiles();
  deal(pool, items, 2 * kRows * t.S * t.H, [t](int64_t begin, int64_t end) { attend(t, begin, end); });
  return ffi::Error::Success();
}

// new [B, T, K, H] into the pages of table [B, G] from column start [B] on, where `where` [B, T] says so.
ffi::Error write(Floats k, Floats v, ffi::Buffer<ffi::S32> start, ffi::Buffer<ffi::PRED> where, Table table, Floats,
                 Floats, ffi::Result<Floats> k_cache, ffi::Result<Floats> v_cache) {
  const auto news = k.dimensions(), caches = k_cache->dimensions();
  const int64_t B = news[0], T = news[1], K = news[2], H = news[3], P = caches[2], G = table.dimensions()[1];
  for (int64_t b = 0; b < B; ++b) {
    // As lax.dynamic_update_slice: a start that leaves too little room is moved.
    const int64_t first = std::clamp<int64_t>(start.typed_data()[b], 0, G * P - T);
    for (int64_t column = 0; column < T; ++column) {
      const int64_t s = first + column, page = table.typed_data()[b * G + s / P];
      if (!where.typed_data()[b * T + column] || page < 0) continue;
      for (int64_t head = 0; head < K; ++head) {
        const int64_t from = ((b * T + column) * K + head) * H, to = ((page * K + head) * P + s % P) * H;
        std::memcpy(k_cache->typed_data() + to, k.typed_data() + from, H * sizeof(float));
        std::memcpy(v_cache->typed_data() + to, v.typed_data() + from, H * sizeof(float));
      }
    }
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace edlm

EDLM_EXPORT(edlm_attention);
XLA_FFI_DEFINE_HANDLER_SYMBOL(edlm_attention, edlm::attention,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<edlm::Floats>()
                                  .Arg<edlm::Floats>()
                                  .Arg<edlm::Floats>()
                                  .Arg<edlm::Table>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::PRED>>()
                                  .Ret<edlm::Floats>());

EDLM_EXPORT(edlm_write);
XLA_FFI_DEFINE_HANDLER_SYMBOL(edlm_write, edlm::write,
                              xla::ffi::Ffi::Bind()
                                  .Arg<edlm::Floats>()
                                  .Arg<edlm::Floats>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::PRED>>()
                                  .Arg<edlm::Table>()
                                  .Arg<edlm::Floats>()
                                  .Arg<edlm::Floats>()
                                  .Ret<edlm::Floats>()
                                  .Ret<edlm::Floats>());

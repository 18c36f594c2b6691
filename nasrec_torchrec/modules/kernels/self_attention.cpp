// Self-attention with heads of 1 to 8 columns among tens of tokens, where matrix kernels spend their time on overhead.
//
// A vector register holds the same number of W independent problems (a problem is one head of one row), so that the
// loop over pairs of tokens has no horizontal operation, no remainder and no padding of tokens. Forward keeps for every
// query its largest score and the inverse of its sum of exponentials; backward computes the weights again.
//
// Plain C++17 with the vector extensions of GCC and Clang and no header of PyTorch: it compiles in a second, and one
// library serves every version of PyTorch. NASREC_SCALAR (float or double) and NASREC_HEAD_DIM say what for. Compiled
// with -march=native, never with -ffast-math: not a number must stay what it is.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>

#include "parallel.h"

namespace {

constexpr double kLog2E = 1.4426950408889634;

// Exponent bits, and a number whose last mantissa bit is worth one: what is added to it is rounded to an integer.
template <class T>
struct Format;

template <>
struct Format<float> {
  typedef float Vector __attribute__((vector_size(kBytes)));
  typedef int32_t Integers __attribute__((vector_size(kBytes)));
  static constexpr float kRounding = 12582912.0f + 127.0f;
  static constexpr int kMantissa = 23;
  static constexpr float kLowest = -126.0f, kHighest = 127.0f;
  // 2^x for -1/2 <= x <= 1/2, highest power first, fitted for the least relative error (7.5e-8).
  static constexpr float kPowers[] = {0.0013276471519700801f, 0.009675541330674983f, 0.05550713274960644f,
                                      0.2402211972393411f,    0.693146967063865f,    1.000000071654656f};
};

template <>
struct Format<double> {
  typedef double Vector __attribute__((vector_size(kBytes)));
  typedef int64_t Integers __attribute__((vector_size(kBytes)));
  static constexpr double kRounding = 6755399441055744.0 + 1023.0;
  static constexpr int kMantissa = 52;
  static constexpr double kLowest = -1022.0, kHighest = 1023.0;
  // Its Taylor series: log(2)^n / n!.
  static constexpr double kPowers[] = {2.5678435993488206e-11, 4.4455382718708116e-10, 7.0549116208011235e-09,
                                       1.0178086009239700e-07, 1.3215486790144309e-06, 1.5252733804059841e-05,
                                       1.5403530393381610e-04, 1.3333558146428443e-03, 9.6181291076284772e-03,
                                       5.5504108664821580e-02, 2.4022650695910072e-01, 6.9314718055994531e-01,
                                       1.0};
};

template <class T>
using Vec = typename Format<T>::Vector;

template <class T>
constexpr int kLanes = kBytes / sizeof(T);

template <class T>
inline Vec<T> all(T value) {
  return value - Vec<T>{};
}

// Not a number stays what it is.
template <class T>
inline Vec<T> exp2(Vec<T> x) {
  using F = Format<T>;
  x = x < F::kLowest ? all(F::kLowest) : x;
  x = x > F::kHighest ? all(F::kHighest) : x;
  const Vec<T> rounded = x + F::kRounding;
  const Vec<T> rest = x - (rounded - F::kRounding);
  Vec<T> power = all(F::kPowers[0]);
#pragma GCC unroll 16
  for (size_t n = 1; n < sizeof(F::kPowers) / sizeof(T); ++n) power = power * rest + F::kPowers[n];
  return power * (Vec<T>)((typename F::Integers)rounded << F::kMantissa);
}

// A tensor (rows, tokens, columns) of any strides; a column is head * D + dimension.
template <class T>
struct View {
  T* data;
  int64_t row, token, column;
};

// W problems: problem p is head p % heads of row p / heads.
struct Group {
  int64_t first, problems, heads;
};

// Between memory and [token][D][W], for the W problems of a group; lanes beyond the last problem hold zeros.
template <class T, int D, class Move>
inline void each_lane(const View<T>& view, const Group& group, int64_t tokens, int64_t offset, Move move) {
  constexpr int W = kLanes<T>;
  constexpr int kChunk = W < 8 ? W : 8;
  // Neighbouring heads lie side by side, and never across two rows: constant steps, which compile to shuffles.
  const bool aligned = view.column == 1 && group.heads % kChunk == 0;
  for (int lane = 0; lane < W; lane += kChunk) {
    const int64_t problem = group.first + lane;
    if (aligned && problem + kChunk <= group.problems) {
      T* source = view.data + problem / group.heads * view.row + offset + problem % group.heads * D;
      for (int64_t n = 0; n < tokens; ++n, source += view.token) {
#pragma GCC unroll 8
        for (int d = 0; d < D; ++d)
          for (int c = 0; c < kChunk; ++c) move(source[c * D + d], (n * D + d) * W + lane + c);
      }
      continue;
    }
    for (int c = 0; c < kChunk && problem + c < group.problems; ++c) {
      const int64_t p = problem + c;
      T* source = view.data + p / group.heads * view.row + (offset + p % group.heads * D) * view.column;
      for (int64_t n = 0; n < tokens; ++n, source += view.token)
        for (int d = 0; d < D; ++d) move(source[d * view.column], (n * D + d) * W + lane + c);
    }
  }
}

template <class T, int D>
inline void pack(const View<T>& view, const Group& group, int64_t tokens, int64_t offset, T scale, T* packed) {
  if (group.first + kLanes<T> > group.problems) std::fill(packed, packed + tokens * D * kLanes<T>, T(0));
  each_lane<T, D>(view, group, tokens, offset, [=](T& there, int64_t here) { packed[here] = there * scale; });
}

template <class T, int D>
inline void unpack(const View<T>& view, const Group& group, int64_t tokens, int64_t offset, T scale, const T* packed) {
  each_lane<T, D>(view, group, tokens, offset, [=](T& there, int64_t here) { there = packed[here] * scale; });
}

template <class T>
struct Call {
  View<T> qkv;      // (rows, tokens, 3 * heads * D)
  View<T> out;      // (rows, tokens, heads * D)
  View<T> grad;     // the same
  View<T> highest;  // (rows, tokens, heads)
  View<T> inverse;  // the same
  View<T> qkv_grad; // as qkv
  int64_t rows, tokens, heads;
};

template <class T, int D, int U>
inline void forward_queries(const Vec<T>* q, const Vec<T>* k, const Vec<T>* v, Vec<T>* o, Vec<T>* highest,
                            Vec<T>* inverse, int64_t tokens) {
  Vec<T> query[U][D], most[U], total[U], sum[U][D];
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) {
    most[u] = all(-std::numeric_limits<T>::infinity());
    total[u] = all(T(0));
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) query[u][d] = q[u * D + d], sum[u][d] = all(T(0));
  }
  for (int64_t j = 0; j < tokens; ++j) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      Vec<T> score = query[u][0] * k[j * D];
#pragma GCC unroll 8
      for (int d = 1; d < D; ++d) score += query[u][d] * k[j * D + d];
      most[u] = most[u] > score ? most[u] : score;
    }
  }
  for (int64_t j = 0; j < tokens; ++j) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      Vec<T> score = query[u][0] * k[j * D] - most[u];
#pragma GCC unroll 8
      for (int d = 1; d < D; ++d) score += query[u][d] * k[j * D + d];
      const Vec<T> weight = exp2<T>(score);
      total[u] += weight;
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) sum[u][d] += weight * v[j * D + d];
    }
  }
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) {
    highest[u] = most[u];
    inverse[u] = T(1) / total[u];
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) o[u * D + d] = sum[u][d] * inverse[u];
  }
}

template <class T, int D>
void forward(const Call<T>& call, const Group& group, Vec<T>* scratch) {
  constexpr int U = D <= 2 ? 4 : 2;
  const int64_t tokens = call.tokens, width = group.heads * D;
  Vec<T>*q = scratch, *k = q + tokens * D, *v = k + tokens * D, *highest = v + tokens * D, *inverse = highest + tokens;
  const T scale = T(kLog2E / std::sqrt(double(D)));
  pack<T, D>(call.qkv, group, tokens, 0, scale, (T*)q);
  pack<T, D>(call.qkv, group, tokens, width, T(1), (T*)k);
  pack<T, D>(call.qkv, group, tokens, 2 * width, T(1), (T*)v);
  // The result takes the place of the queries.
  int64_t i = 0;
  for (; i + U <= tokens; i += U) forward_queries<T, D, U>(q + i * D, k, v, q + i * D, highest + i, inverse + i, tokens);
  for (; i < tokens; ++i) forward_queries<T, D, 1>(q + i * D, k, v, q + i * D, highest + i, inverse + i, tokens);
  unpack<T, D>(call.out, group, tokens, 0, T(1), (T*)q);
  unpack<T, 1>(call.highest, group, tokens, 0, T(1), (T*)highest);
  unpack<T, 1>(call.inverse, group, tokens, 0, T(1), (T*)inverse);
}

template <class T, int D, int U>
inline void backward_queries(Vec<T>* q, const Vec<T>* k, const Vec<T>* v, const Vec<T>* grad, const Vec<T>* highest,
                             const Vec<T>* delta, Vec<T>* dk, Vec<T>* dv, int64_t tokens) {
  Vec<T> dq[U][D];
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u)
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) dq[u][d] = all(T(0));
  for (int64_t j = 0; j < tokens; ++j) {
    Vec<T> key[D], value[D], dkey[D], dvalue[D];
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d)
      key[d] = k[j * D + d], value[d] = v[j * D + d], dkey[d] = dk[j * D + d], dvalue[d] = dv[j * D + d];
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      Vec<T> score = q[u * D] * key[0] - highest[u], slope = grad[u * D] * value[0] - delta[u];
#pragma GCC unroll 8
      for (int d = 1; d < D; ++d) score += q[u * D + d] * key[d], slope += grad[u * D + d] * value[d];
      const Vec<T> weight = exp2<T>(score);
      slope *= weight;
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) {
        dq[u][d] += slope * key[d];
        dkey[d] += slope * q[u * D + d];
        dvalue[d] += weight * grad[u * D + d];
      }
    }
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) dk[j * D + d] = dkey[d], dv[j * D + d] = dvalue[d];
  }
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u)
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) q[u * D + d] = dq[u][d];
}

template <class T, int D>
void backward(const Call<T>& call, const Group& group, Vec<T>* scratch) {
  constexpr int U = D <= 4 ? 2 : 1;
  const int64_t tokens = call.tokens, width = group.heads * D, size = tokens * D;
  Vec<T>*q = scratch, *k = q + size, *v = k + size, *grad = v + size, *dk = grad + size, *dv = dk + size;
  Vec<T>*highest = dv + size, *inverse = highest + tokens;
  const T scale = T(kLog2E / std::sqrt(double(D)));
  pack<T, D>(call.qkv, group, tokens, 0, scale, (T*)q);
  pack<T, D>(call.qkv, group, tokens, width, T(1), (T*)k);
  pack<T, D>(call.qkv, group, tokens, 2 * width, T(1), (T*)v);
  pack<T, D>(call.grad, group, tokens, 0, T(1), (T*)grad);
  pack<T, D>(call.out, group, tokens, 0, T(1), (T*)dv);
  pack<T, 1>(call.highest, group, tokens, 0, T(1), (T*)highest);
  pack<T, 1>(call.inverse, group, tokens, 0, T(1), (T*)inverse);
  // Weights are exponentials times the inverse of a query's sum; the inverse goes into what the weights meet.
  Vec<T>* delta = inverse;
  for (int64_t i = 0; i < tokens; ++i) {
    const Vec<T> factor = inverse[i];
    Vec<T> sum = all(T(0));
    for (int d = 0; d < D; ++d) {
      grad[i * D + d] *= factor;
      sum += grad[i * D + d] * dv[i * D + d];
    }
    delta[i] = sum;
  }
  std::memset((void*)dk, 0, 2 * size * sizeof(Vec<T>));
  // The gradient of the queries takes their place.
  int64_t i = 0;
  for (; i + U <= tokens; i += U)
    backward_queries<T, D, U>(q + i * D, k, v, grad + i * D, highest + i, delta + i, dk, dv, tokens);
  for (; i < tokens; ++i)
    backward_queries<T, D, 1>(q + i * D, k, v, grad + i * D, highest + i, delta + i, dk, dv, tokens);
  unpack<T, D>(call.qkv_grad, group, tokens, 0, T(1 / std::sqrt(double(D))), (T*)q);
  unpack<T, D>(call.qkv_grad, group, tokens, width, T(1 / kLog2E), (T*)dk);
  unpack<T, D>(call.qkv_grad, group, tokens, 2 * width, T(1), (T*)dv);
}

template <class T>
using Kernel = void (*)(const Call<T>&, const Group&, Vec<T>*);

// Runs a kernel over all groups.
template <class T>
void run(Kernel<T> kernel, const Call<T>& call, int64_t vectors, int64_t threads) {
  const int64_t problems = call.rows * call.heads, groups = (problems + kLanes<T> - 1) / kLanes<T>;
  in_parallel(groups, vectors * sizeof(Vec<T>), threads, [&](int64_t first, int64_t last, char* scratch) {
    for (int64_t g = first; g < last; ++g)
      kernel(call, {g * kLanes<T>, problems, call.heads}, reinterpret_cast<Vec<T>*>(scratch));
  });
}

}  // namespace

// Tensors in the order qkv, out, highest, inverse[, grad, qkv_grad], and three strides, in elements, of each.
extern "C" int nasrec_self_attention(int backwards, NASREC_SCALAR* const* data, const int64_t* strides, int64_t rows,
                                     int64_t tokens, int64_t heads, int64_t threads) {
  using T = NASREC_SCALAR;
  constexpr int D = NASREC_HEAD_DIM;
  static_assert(1 <= D && D <= 8, "wider heads have enough columns for a matrix kernel");
  const auto view = [&](int n) { return View<T>{data[n], strides[3 * n], strides[3 * n + 1], strides[3 * n + 2]}; };
  Call<T> call{view(0), view(1), {}, view(2), view(3), {}, rows, tokens, heads};
  if (backwards) call.grad = view(4), call.qkv_grad = view(5);
  try {
    run<T>(backwards ? backward<T, D> : forward<T, D>, call, tokens * ((backwards ? 6 : 3) * D + 2), threads);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}

// Products of all pairs among tens of tokens, for which matrix kernels compute each product twice, and the gradient.
//
// The tokens lie side by side in memory. A vector register holds neighbouring tokens, so that one load of a column
// meets one column of another token, and the products of a token with those before it are written one after the other.
//
// Plain C++17 with the vector extensions of GCC and Clang and no header of PyTorch. NASREC_SCALAR (float or double) says
// what for. Compiled with -march=native, never with -ffast-math: not a number must stay what it is.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

#include "parallel.h"

namespace {

using T = NASREC_SCALAR;
constexpr int W = kBytes / sizeof(T);
typedef T Vec __attribute__((vector_size(kBytes)));

// Tokens (rows, columns, tokens) of any strides.
struct View {
  T* data;
  int64_t row, column, token;
};

struct Sizes {
  int64_t columns, tokens, vectors;  // vectors hold the tokens of a column
};

// One row's tokens as [column][vectors * W], with zeros behind the last token.
inline void pack(const View& view, int64_t row, const Sizes& sizes, T* packed) {
  for (int64_t e = 0; e < sizes.columns; ++e, packed += sizes.vectors * W) {
    const T* source = view.data + row * view.row + e * view.column;
    if (view.token == 1) {
      std::memcpy(packed, source, sizes.tokens * sizeof(T));
    } else {
      for (int64_t i = 0; i < sizes.tokens; ++i) packed[i] = source[i * view.token];
    }
    std::fill(packed + sizes.tokens, packed + sizes.vectors * W, T(0));
  }
}

inline void unpack(const View& view, int64_t row, const Sizes& sizes, const T* packed) {
  for (int64_t e = 0; e < sizes.columns; ++e, packed += sizes.vectors * W)
    for (int64_t i = 0; i < sizes.tokens; ++i) view.data[row * view.row + e * view.column + i * view.token] = packed[i];
}

// The products of U neighbouring tokens, from the first of them on, with the tokens of V vectors: enough of them that no
// sum waits for itself. A token keeps those with the tokens before it.
template <int U, int V>
inline void products(const T* packed, const Sizes& sizes, int64_t first, int64_t vector, T* out) {
  Vec sums[U][V];
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[u][v] = Vec{};
  const T* column = packed;
  for (int64_t e = 0; e < sizes.columns; ++e, column += sizes.vectors * W) {
    Vec others[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) others[v] = reinterpret_cast<const Vec*>(column)[vector + v];
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[u][v] += column[first + u] * others[v];
  }
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const int64_t token = first + u, before = (vector + v) * W, here = token - before;
      T* target = out + token * (token - 1) / 2 + before;
      if (here >= W) {
        std::memcpy(target, &sums[u][v], sizeof(Vec));
      } else {
        for (int64_t j = 0; j < here; ++j) target[j] = sums[u][v][j];
      }
    }
}

template <int U>
inline void products(const T* packed, const Sizes& sizes, int64_t first, T* out) {
  const int64_t vectors = (first + U - 1 + W - 1) / W;  // of all tokens before the last of the U
  int64_t vector = 0;
  for (; vector + 2 <= vectors; vector += 2) products<U, 2>(packed, sizes, first, vector, out);
  if (vector < vectors) products<U, 1>(packed, sizes, first, vector, out);
}

void forward(const View& tokens, T* out, int64_t row, const Sizes& sizes, char* scratch) {
  constexpr int U = 4;
  T* packed = reinterpret_cast<T*>(scratch);
  pack(tokens, row, sizes, packed);
  int64_t i = 0;
  for (; i + U <= sizes.tokens; i += U) products<U>(packed, sizes, i, out);
  for (; i < sizes.tokens; ++i) products<1>(packed, sizes, i, out);
}

// The gradient of token i is the sum of all others, each times the gradient of their product.
void backward(const View& tokens, const T* grad, const View& tokens_grad, int64_t row, const Sizes& sizes,
              char* scratch) {
  constexpr int U = 8;
  const int64_t stride = sizes.vectors * W;
  T* packed = reinterpret_cast<T*>(scratch);
  T* found = packed + sizes.columns * stride;
  T* symmetric = found + sizes.columns * stride;  // [token][vectors * W]
  pack(tokens, row, sizes, packed);
  const T* source = grad;
  for (int64_t i = 0; i < sizes.tokens; source += i++) {
    std::memcpy(symmetric + i * stride, source, i * sizeof(T));
    for (int64_t j = 0; j < i; ++j) symmetric[j * stride + i] = source[j];
    symmetric[i * stride + i] = T(0);
  }
  for (int64_t vector = 0; vector < sizes.vectors; ++vector) {
    int64_t e = 0;
    const auto columns = [&](auto count) {
      constexpr int C = decltype(count)::value;
      Vec sums[C];
      for (int c = 0; c < C; ++c) sums[c] = Vec{};
      for (int64_t j = 0; j < sizes.tokens; ++j) {
        const Vec slopes = reinterpret_cast<const Vec*>(symmetric + j * stride)[vector];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sums[c] += packed[(e + c) * stride + j] * slopes;
      }
      for (int c = 0; c < C; ++c) reinterpret_cast<Vec*>(found + (e + c) * stride)[vector] = sums[c];
    };
    for (; e + U <= sizes.columns; e += U) columns(std::integral_constant<int, U>{});
    for (; e < sizes.columns; ++e) columns(std::integral_constant<int, 1>{});
  }
  unpack(tokens_grad, row, sizes, found);
}

}  // namespace

// Three strides, in elements, of the tokens, one of the products' rows (backwards: of their gradient's), and backwards
// three of the tokens' gradient.
extern "C" int nasrec_pair_products(int backwards, const T* tokens, T* products, T* tokens_grad, const int64_t* strides,
                                    int64_t rows, int64_t columns, int64_t count, int64_t threads) {
  const Sizes sizes{columns, count, (count + W - 1) / W};
  const View view{const_cast<T*>(tokens), strides[0], strides[1], strides[2]};
  const int64_t vectors = sizes.vectors * (backwards ? 2 * columns + count : columns);
  try {
    in_parallel(rows, vectors * sizeof(Vec), threads, [&](int64_t first, int64_t last, char* scratch) {
      for (int64_t row = first; row < last; ++row) {
        if (backwards)
          backward(view, products + row * strides[3], {tokens_grad, strides[4], strides[5], strides[6]}, row, sizes, scratch);
        else
          forward(view, products + row * strides[3], row, sizes, scratch);
      }
    });
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}

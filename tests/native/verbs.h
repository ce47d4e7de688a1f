// A layer with its layouts, the calls to the kernels (each in one place), and what they must compute.
#pragma once

#include <algorithm>
#include <vector>

#include "cases.h"
#include "convolution.h"
#include "layout.h"
#include "matrix.h"

namespace truesparse::testing {

// A topology as a kernel wants it. The view holds addresses, so the whole is not copied.
struct Blocked {
  Topology topology;
  Indices permutation, starts;
  Layout view;

  // Blocks of about `connections` connections a row, of a multiple of `whole` columns.
  Blocked(Topology laid_out, Indices permuted, int64_t whole, int64_t connections, int64_t rows_per_group) : topology(std::move(laid_out)), permutation(std::move(permuted)) {
    const int64_t rows = topology.rows, columns = topology.columns, wanted = rows * columns * connections / std::max<int64_t>(1, topology.nnz());
    const int64_t width = std::min((std::max<int64_t>(1, wanted) + whole - 1) / whole * whole, columns), blocks = (columns + width - 1) / width;
    starts = unwritten<int32_t>(std::max<int64_t>(0, blocks - 1) * rows);
    block_starts(rows, topology.indptr.data(), topology.indices.data(), width, blocks, starts.data());
    view = {rows,           columns, topology.indptr.data(), topology.indices.data(), permutation.empty() ? nullptr : permutation.data(),
            starts.data(), blocks,  width,   rows_alike(rows, topology.indptr.data(), topology.indices.data(), rows_per_group)};
  }
  Blocked(const Blocked&) = delete;
};

// A matrix is a convolution of 1 x 1 taps and 1 x 1 images, which other kernels run.
struct Layer {
  bool is_matrix;
  Convolution convolution;
  Pair size;
  int64_t batch;
  Blocked forward, transposed;

  Layer(bool is_matrix, const Convolution& convolution, Pair size, int64_t batch, const Topology& topology, int64_t connections)
      : is_matrix(is_matrix), convolution(convolution), size(size), batch(batch), forward(topology, {}, convolution.taps(), connections, convolution.out_channels / convolution.groups),
        transposed(transpose_of(is_matrix, convolution, topology, connections)) {}

  Pair output() const { return {convolution.output(size.height, &Pair::height), convolution.output(size.width, &Pair::width)}; }
  int64_t nnz() const { return forward.topology.nnz(); }
  int64_t inputs() const { return batch * convolution.in_channels * size.height * size.width; }
  int64_t outputs() const { return batch * convolution.out_channels * output().height * output().width; }

  // Calls body(output, connection, input) for each product, with positions in y, values and x.
  template <class Body>
  void for_products(Body&& body) const {
    const Convolution& c = convolution;
    const Topology& topology = forward.topology;
    const Pair out = output();
    for (int64_t sample = 0; sample < batch; ++sample)
      for (int64_t row = 0; row < topology.rows; ++row)
        for (int64_t p = topology.indptr[row]; p < topology.indptr[row + 1]; ++p) {
          const int64_t column = topology.indices[p], group = row / (c.out_channels / c.groups);
          const int64_t channel = group * c.channels_per_group() + column / c.taps();
          for (int64_t oh = 0; oh < out.height; ++oh)
            for (int64_t ow = 0; ow < out.width; ++ow) {
              const int64_t h = oh * c.stride.height - c.padding.height + column % c.taps() / c.kernel.width * c.dilation.height;
              const int64_t w = ow * c.stride.width - c.padding.width + column % c.kernel.width * c.dilation.width;
              if (h < 0 || h >= size.height || w < 0 || w >= size.width) continue;
              body(((sample * c.out_channels + row) * out.height + oh) * out.width + ow, p,
                   ((sample * c.in_channels + channel) * size.height + h) * size.width + w);
            }
        }
  }

 private:
  static Blocked transpose_of(bool is_matrix, const Convolution& c, const Topology& topology, int64_t connections) {
    const int64_t rows = is_matrix ? topology.columns : c.in_channels * c.phases(), columns = c.out_channels * c.taps();
    Topology t{rows, columns, unwritten<int32_t>(rows + 1), unwritten<int32_t>(topology.nnz())};
    Indices permutation = unwritten<int32_t>(topology.nnz());
    if (is_matrix)
      transpose(topology.rows, topology.columns, topology.indptr.data(), topology.indices.data(), rows, nullptr, 1, 1, t.indptr.data(),
                t.indices.data(), permutation.data());
    else
      transpose_convolution(c, topology.indptr.data(), topology.indices.data(), t.indptr.data(), t.indices.data(), permutation.data());
    return Blocked(std::move(t), std::move(permutation), c.taps(), connections, rows);
  }
};

// T is the type of values and sums, S that of what has an entry a sample.
template <class T, class S>
struct Numbers {
  std::vector<T> values, bias;
  std::vector<S> x, dy;
};

template <class T, class S>
Numbers<T, S> numbers_for(const Layer& layer, Random& random, std::vector<T> (*draw)(Random&, int64_t), std::vector<S> (*draw_samples)(Random&, int64_t)) {
  return {draw(random, layer.nnz()), draw(random, layer.convolution.out_channels), draw_samples(random, layer.inputs()), draw_samples(random, layer.outputs())};
}

template <class T, class S>
struct Gradients {
  std::vector<T> dvalues;
  std::vector<S> dx;
  std::vector<T> dbias;
};

struct Need {
  bool dvalues, dx, dbias;
};

template <class T, class S>
std::vector<S> spmm(const Layer& layer, const Numbers<T, S>& n, bool with_bias, int64_t threads) {
  std::vector<S> y = unwritten<S>(layer.outputs());
  const T* bias = with_bias ? n.bias.data() : nullptr;
  if (layer.is_matrix) matrix_spmm(layer.forward.view, n.values.data(), bias, n.x.data(), y.data(), layer.batch, 1, threads);
  else convolution_spmm(layer.convolution, layer.forward.view, n.values.data(), bias, n.x.data(), y.data(), layer.batch, layer.size, threads);
  return y;
}

// What a gradient that is not needed would be computed from is not given either.
template <class T, class S>
Gradients<T, S> backward(const Layer& layer, const Numbers<T, S>& n, Need need, int64_t threads) {
  Gradients<T, S> g{unwritten<T>(need.dvalues ? layer.nnz() : 0), unwritten<S>(need.dx ? layer.inputs() : 0),
                    unwritten<T>(need.dbias ? layer.convolution.out_channels : 0)};
  T *dvalues = need.dvalues ? g.dvalues.data() : nullptr, *dbias = need.dbias ? g.dbias.data() : nullptr;
  S* dx = need.dx ? g.dx.data() : nullptr;
  const Layout* transposed = need.dx ? &layer.transposed.view : nullptr;
  const T* values = need.dx ? n.values.data() : nullptr;
  const S* x = need.dvalues ? n.x.data() : nullptr;
  if (layer.is_matrix) matrix_backward(layer.forward.view, transposed, values, n.dy.data(), x, dvalues, dx, dbias, layer.batch, 1, threads);
  else
    convolution_backward(layer.convolution, layer.forward.view, transposed, values, n.dy.data(), x, dvalues, dx, dbias, layer.batch, layer.size,
                         threads);
  return g;
}

// The oracle: one product after the other, in double.
template <class T, class S>
std::vector<double> expected_spmm(const Layer& layer, const Numbers<T, S>& n, bool with_bias) {
  std::vector<double> y(layer.outputs(), 0);
  const int64_t rows = layer.convolution.out_channels, positions = layer.output().height * layer.output().width;
  if (with_bias)
    for (size_t i = 0; i < y.size(); ++i) y[i] = n.bias[static_cast<int64_t>(i) / positions % rows];
  layer.for_products([&](int64_t output, int64_t p, int64_t input) { y[output] += double{n.values[p]} * wide(n.x[input]); });
  return y;
}

template <class T, class S>
Gradients<double, double> expected_backward(const Layer& layer, const Numbers<T, S>& n) {
  const int64_t rows = layer.convolution.out_channels, positions = layer.output().height * layer.output().width;
  Gradients<double, double> g{std::vector<double>(layer.nnz(), 0), std::vector<double>(layer.inputs(), 0), std::vector<double>(rows, 0)};
  layer.for_products([&](int64_t output, int64_t p, int64_t input) {
    g.dvalues[p] += wide(n.x[input]) * wide(n.dy[output]);
    g.dx[input] += double{n.values[p]} * wide(n.dy[output]);
  });
  for (int64_t i = 0; i < layer.outputs(); ++i) g.dbias[i / positions % rows] += wide(n.dy[i]);
  return g;
}

}  // namespace truesparse::testing

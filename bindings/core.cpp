// truesparse._core: shapes and addresses in, the GIL released while kernels run. Python checks types and shapes beforehand.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "columns.h"
#include "convolution.h"
#include "epilogue.h"
#include "isa.h"
#include "layout.h"
#include "matrix.h"
#include "pairs.h"
#include "paths.h"
#include "peak.h"
#include "planned_convolution.h"
#include "program.h"
#include "rewiring.h"
#include "runs.h"
#include "shared_rows.h"
#include "threads.h"
#include "top_k.h"
#include "windows.h"
#include "workspace.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace truesparse;

namespace {

using Address = uintptr_t;  // what torch's data_ptr() returns; 0 means "not given"

// What a program calls, as an object of Python.
struct Step {
  Call call;
};

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <class T, class S>
void bind_verbs(nb::module_& m, const char* suffix) {
  const auto name = [suffix](const char* verb) { return std::string(verb) + suffix; };
  using Release = nb::call_guard<nb::gil_scoped_release>;
  m.def(
      name("matrix_spmv").c_str(),
      [](const Matrix& matrix, Address values, Address bias, Address x, Address y, int64_t batch, int64_t threads) {
        matrix_spmv(matrix, at<const T>(values), at<const T>(bias), at<const S>(x), at<S>(y), batch, threads);
      },
      Release(), "matrix"_a, "values"_a, "bias"_a, "x"_a, "y"_a, "batch"_a, "threads"_a);
  m.def(
      name("matrix_spmm").c_str(),
      [](const Runs& runs, Address values, Address bias, Address x, Address y, int64_t batch, int64_t pixels, int64_t threads) {
        matrix_spmm(runs, at<const T>(values), at<const T>(bias), at<const S>(x), at<S>(y), batch, pixels, threads);
      },
      Release(), "runs"_a, "values"_a, "bias"_a, "x"_a, "y"_a, "batch"_a, "pixels"_a, "threads"_a);
  m.def(
      name("matrix_backward").c_str(),
      [](const Runs* runs, const Runs* transposed, Address values, Address dy, Address x, Address dvalues, Address dx, Address dbias, int64_t rows,
         int64_t batch, int64_t pixels, int64_t threads) {
        matrix_backward(runs, transposed, at<const T>(values), at<const S>(dy), at<const S>(x), at<T>(dvalues), at<S>(dx), at<T>(dbias), rows, batch,
                        pixels, threads);
      },
      Release(), "runs"_a.none(), "transposed"_a.none(), "values"_a, "dy"_a, "x"_a, "dvalues"_a, "dx"_a, "dbias"_a, "rows"_a, "batch"_a, "pixels"_a,
      "threads"_a);
  m.def(
      name("shared_rows_spmm").c_str(),
      [](const SharedRows& matrix, Address values, Address bias, Address x, Address y, int64_t batch, int64_t pixels, int64_t threads) {
        shared_rows_spmm(matrix, at<const T>(values), at<const T>(bias), at<const S>(x), at<S>(y), batch, pixels, threads);
      },
      Release(), "matrix"_a, "values"_a, "bias"_a, "x"_a, "y"_a, "batch"_a, "pixels"_a, "threads"_a);
  m.def(
      name("shared_rows_backward").c_str(),
      [](const SharedRows& matrix, Address values, Address dy, Address x, Address dvalues, Address dx, Address dbias, int64_t batch, int64_t pixels,
         int64_t threads) {
        shared_rows_backward(matrix, at<const T>(values), at<const S>(dy), at<const S>(x), at<T>(dvalues), at<S>(dx), at<T>(dbias), batch, pixels, threads);
      },
      Release(), "matrix"_a, "values"_a, "dy"_a, "x"_a, "dvalues"_a, "dx"_a, "dbias"_a, "batch"_a, "pixels"_a, "threads"_a);
  m.def(
      name("convolution_spmm").c_str(),
      [](const Convolution& convolution, const Runs& runs, Address values, Address bias, Address x, Address y, int64_t batch, int64_t height,
         int64_t width, int64_t threads) {
        convolution_spmm(convolution, runs, at<const T>(values), at<const T>(bias), at<const S>(x), at<S>(y), batch, {height, width}, threads);
      },
      Release(), "convolution"_a, "runs"_a, "values"_a, "bias"_a, "x"_a, "y"_a, "batch"_a, "height"_a, "width"_a, "threads"_a);
  m.def(
      name("convolution_backward").c_str(),
      [](const Convolution& convolution, const Runs* runs, const Runs* transposed, Address values, Address dy, Address x, Address dvalues,
         Address dx, Address dbias, int64_t batch, int64_t height, int64_t width, int64_t threads) {
        convolution_backward(convolution, runs, transposed, at<const T>(values), at<const S>(dy), at<const S>(x), at<T>(dvalues), at<S>(dx),
                             at<T>(dbias), batch, {height, width}, threads);
      },
      Release(), "convolution"_a, "runs"_a.none(), "transposed"_a.none(), "values"_a, "dy"_a, "x"_a, "dvalues"_a, "dx"_a, "dbias"_a, "batch"_a,
      "height"_a, "width"_a, "threads"_a);
}

void bind_paths(nb::module_& m) {
  nb::enum_<PathRule>(m, "PathRule").value("CH3_L3p", PathRule::CH3_L3p).value("CH2_L3n", PathRule::CH2_L3n);
  m.def(
      "score_paths",
      [](PathRule rule, int64_t rows, int64_t columns, Address indptr, Address indices, Address t_indptr, Address t_indices, int64_t row_start,
         int64_t row_end, Address starts, Address counts, Address found, Address scores, int64_t threads) {
        score_paths(rule, rows, columns, at<const int32_t>(indptr), at<const int32_t>(indices), at<const int32_t>(t_indptr),
                    at<const int32_t>(t_indices), row_start, row_end, at<const int64_t>(starts), at<int32_t>(counts), at<int32_t>(found),
                    at<float>(scores), threads);
      },
      nb::call_guard<nb::gil_scoped_release>(), "rule"_a, "rows"_a, "columns"_a, "indptr"_a, "indices"_a, "t_indptr"_a, "t_indices"_a,
      "row_start"_a, "row_end"_a, "starts"_a, "counts"_a, "found"_a, "scores"_a, "threads"_a);
}

void bind_rewiring(nb::module_& m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;
  m.def(
      "row_of_each", [](int64_t rows, Address indptr, Address row) { row_of_each(rows, at<const int32_t>(indptr), at<int32_t>(row)); },
      Release(), "rows"_a, "indptr"_a, "row"_a);
  m.def(
      "key_of_each",
      [](int64_t rows, int64_t columns, Address indptr, Address indices, Address keys) {
        key_of_each(rows, columns, at<const int32_t>(indptr), at<const int32_t>(indices), at<int64_t>(keys));
      },
      Release(), "rows"_a, "columns"_a, "indptr"_a, "indices"_a, "keys"_a);
  m.def(
      "compress",
      [](int64_t rows, int64_t columns, Address keys, int64_t count, Address indptr, Address indices) {
        compress(rows, columns, at<const int64_t>(keys), count, at<int32_t>(indptr), at<int32_t>(indices));
      },
      Release(), "rows"_a, "columns"_a, "keys"_a, "count"_a, "indptr"_a, "indices"_a);
  m.def(
      "collect",
      [](int64_t rows, Address row, Address column, int64_t count, Address indptr, Address indices) {
        return collect(rows, at<const int32_t>(row), at<const int32_t>(column), count, at<int32_t>(indptr), at<int32_t>(indices));
      },
      Release(), "rows"_a, "row"_a, "column"_a, "count"_a, "indptr"_a, "indices"_a);
  m.def(
      "kept_starts",
      [](int64_t rows, Address indptr, Address kept, Address kept_indptr) {
        return kept_starts(rows, at<const int32_t>(indptr), at<const bool>(kept), at<int32_t>(kept_indptr));
      },
      Release(), "rows"_a, "indptr"_a, "kept"_a, "kept_indptr"_a);
  m.def(
      "keep",
      [](int64_t rows, Address indptr, Address indices, Address kept, Address kept_indptr, Address kept_indices, int64_t threads) {
        keep(rows, at<const int32_t>(indptr), at<const int32_t>(indices), at<const bool>(kept), at<const int32_t>(kept_indptr),
             at<int32_t>(kept_indices), threads);
      },
      Release(), "rows"_a, "indptr"_a, "indices"_a, "kept"_a, "kept_indptr"_a, "kept_indices"_a, "threads"_a);
  m.def(
      "grow",
      [](int64_t rows, int64_t columns, Address indptr, Address indices, Address keys, int64_t count, Address grown_indptr,
         Address grown_indices, int64_t threads) {
        return grow(rows, columns, at<const int32_t>(indptr), at<const int32_t>(indices), at<const int64_t>(keys), count,
                    at<int32_t>(grown_indptr), at<int32_t>(grown_indices), threads);
      },
      Release(), "rows"_a, "columns"_a, "indptr"_a, "indices"_a, "keys"_a, "count"_a, "grown_indptr"_a, "grown_indices"_a, "threads"_a);
  m.def(
      "follow",
      [](int64_t rows, int64_t columns, Address old_indptr, Address old_indices, Address new_indptr, Address new_indices, Address source, int64_t threads) {
        follow(rows, columns, at<const int32_t>(old_indptr), at<const int32_t>(old_indices), at<const int32_t>(new_indptr),
               at<const int32_t>(new_indices), at<int32_t>(source), threads);
      },
      Release(), "rows"_a, "columns"_a, "old_indptr"_a, "old_indices"_a, "new_indptr"_a, "new_indices"_a, "source"_a, "threads"_a);
  const auto bind_move = [&m](const char* name, auto index) {
    using Index = decltype(index);
    m.def(
        name,
        [](int64_t bytes, Address array, Address source, int64_t count, Address fill, Address moved, int64_t threads) {
          move(bytes, at<const void>(array), at<const Index>(source), count, at<const void>(fill), at<void>(moved), threads);
        },
        Release(), "bytes"_a, "array"_a, "source"_a, "count"_a, "fill"_a, "moved"_a, "threads"_a);
  };
  bind_move("move_int32", int32_t{});
  bind_move("move_int64", int64_t{});
  const auto bind_lowest = [&m](const char* name, auto type) {
    using T = decltype(type);
    m.def(
        name,
        [](Address scores, int64_t size, int64_t count, Address indices, int64_t threads) {
          lowest(at<const T>(scores), size, count, at<int64_t>(indices), threads);
        },
        Release(), "scores"_a, "size"_a, "count"_a, "indices"_a, "threads"_a);
  };
  bind_lowest("lowest_float32", float{});
  bind_lowest("lowest_float64", double{});
  m.def(
      "place",
      [](Address sums, int64_t size, Address wanted, int64_t count, Address places, int64_t threads) {
        place(at<const double>(sums), size, at<const double>(wanted), count, at<int64_t>(places), threads);
      },
      Release(), "sums"_a, "size"_a, "wanted"_a, "count"_a, "places"_a, "threads"_a);
  m.def(
      "accept",
      [](Address present, int64_t present_count, Address taken, int64_t taken_count, Address drawn, int64_t drawn_count, Address merged,
         Address refused) {
        return accept(at<const int64_t>(present), present_count, at<const int64_t>(taken), taken_count, at<const int64_t>(drawn), drawn_count,
                      at<int64_t>(merged), at<int64_t>(refused));
      },
      Release(), "present"_a, "present_count"_a, "taken"_a, "taken_count"_a, "drawn"_a, "drawn_count"_a, "merged"_a, "refused"_a);
}

void bind_pairs(nb::module_& m) {
  nb::class_<PairArrays>(m, "PairArrays")
      .def_prop_ro("sizes",
                   [](const PairArrays& self) {
                     return std::vector<size_t>{self.starts.size(), self.steps.size(), self.members.size(), self.places.size(), self.values.size()};
                   })
      .def(
          "copy_to",
          [](const PairArrays& self, Address starts, Address steps, Address members, Address places, Address values) {
            std::copy(self.starts.begin(), self.starts.end(), at<int64_t>(starts));
            std::copy(self.steps.begin(), self.steps.end(), at<uint16_t>(steps));
            std::copy(self.members.begin(), self.members.end(), at<int32_t>(members));
            std::copy(self.places.begin(), self.places.end(), at<uint16_t>(places));
            std::copy(self.values.begin(), self.values.end(), at<float>(values));
          },
          "starts"_a, "steps"_a, "members"_a, "places"_a, "values"_a);
  m.def(
      "lay_out_pairs",
      [](int64_t rows, int64_t columns, int64_t abreast, int64_t width, int64_t parts, Address indptr, Address indices, Address values) {
        return lay_out_pairs({rows, columns, abreast, width, parts}, at<const int32_t>(indptr), at<const int32_t>(indices), at<const float>(values));
      },
      nb::call_guard<nb::gil_scoped_release>(), "rows"_a, "columns"_a, "abreast"_a, "width"_a, "parts"_a, "indptr"_a, "indices"_a, "values"_a);
  nb::class_<Pairs>(m, "Pairs")
      .def(
          "__init__",
          [](Pairs* self, int64_t rows, int64_t columns, int64_t abreast, int64_t width, int64_t parts, Address starts, Address steps, Address members,
             Address places, Address values) {
            new (self) Pairs{{rows, columns, abreast, width, parts}, at<const int64_t>(starts), at<const uint16_t>(steps), at<const int32_t>(members),
                             at<const uint16_t>(places), at<const float>(values)};
          },
          "rows"_a, "columns"_a, "abreast"_a, "width"_a, "parts"_a, "starts"_a, "steps"_a, "members"_a, "places"_a, "values"_a)
      .def(
          "spmm",
          [](const Pairs& self, Address bias, bool relu, Address x, Address y, int64_t batch, int64_t threads) {
            pairs_spmm(self, at<const float>(bias), relu, at<const float>(x), at<float>(y), batch, threads);
          },
          nb::call_guard<nb::gil_scoped_release>(), "bias"_a, "relu"_a, "x"_a, "y"_a, "batch"_a, "threads"_a)
      .def(
          "call",
          [](const Pairs& self, Address bias, bool relu, int64_t batch, int64_t threads) -> Step {
            return {[&self, bias, relu, batch, threads](const float* x, const float*, float* y) {
              pairs_spmm(self, at<const float>(bias), relu, x, y, batch, threads);
            }};
          },
          nb::keep_alive<0, 1>(), "bias"_a, "relu"_a, "batch"_a, "threads"_a);
}

template <class V>
void bind_windows(nb::module_& m, const char* suffix) {
  nb::class_<Windows<V>>(m, (std::string("Windows") + suffix).c_str())
      .def(
          "__init__",
          [](Windows<V>* self, int64_t rows, int64_t columns, int64_t bits, int64_t shown, Address order, Address starts, Address first, Address places,
             Address values, Address scales) {
            new (self) Windows<V>{rows, columns, bits, shown, at<const int32_t>(order), at<const int32_t>(starts), at<const int32_t>(first),
                                  at<const uint32_t>(places), at<const V>(values), at<const float>(scales)};
          },
          "rows"_a, "columns"_a, "bits"_a, "shown"_a, "order"_a, "starts"_a, "first"_a, "places"_a, "values"_a, "scales"_a)
      .def(
          "unpack",
          [](const Windows<V>& self, Address dense, int64_t threads) { unpack_windows(self, at<float>(dense), threads); },
          nb::call_guard<nb::gil_scoped_release>(), "dense"_a, "threads"_a)
      .def(
          "spmv",
          [](const Windows<V>& self, Address bias, bool relu, Address x, Address y, int64_t batch, int64_t threads) {
            windows_spmv(self, at<const float>(bias), relu, at<const float>(x), at<float>(y), batch, threads);
          },
          nb::call_guard<nb::gil_scoped_release>(), "bias"_a, "relu"_a, "x"_a, "y"_a, "batch"_a, "threads"_a)
      .def(
          "call",
          [](const Windows<V>& self, Address bias, bool relu, int64_t batch, int64_t threads) -> Step {
            return {[&self, bias, relu, batch, threads](const float* x, const float*, float* y) {
              windows_spmv(self, at<const float>(bias), relu, x, y, batch, threads);
            }};
          },
          nb::keep_alive<0, 1>(), "bias"_a, "relu"_a, "batch"_a, "threads"_a);
}

void bind_programs(nb::module_& m) {
  nb::class_<Step>(m, "Call");
  m.def(
      "finish",
      [](bool gelu, float low, float high, Address added, Address y, int64_t count, int64_t threads) {
        finish({gelu, low, high}, at<const float>(added), at<float>(y), count, threads);
      },
      nb::call_guard<nb::gil_scoped_release>(), "gelu"_a, "low"_a, "high"_a, "added"_a, "y"_a, "count"_a, "threads"_a);
  m.def(
      "finish_call",
      [](bool gelu, float low, float high, int64_t count, int64_t threads) -> Step {
        return {[=](const float*, const float* added, float* y) { finish({gelu, low, high}, added, y, count, threads); }};
      },
      "gelu"_a, "low"_a, "high"_a, "count"_a, "threads"_a);
  m.def(
      "copy_call",
      [](int64_t from_start, int64_t to_start, int64_t size, bool zeros, std::vector<int64_t> extents, std::vector<int64_t> from_strides,
         std::vector<int64_t> to_strides) -> Step {
        return {[own = Copy{from_start, to_start, size, zeros, std::move(extents), std::move(from_strides), std::move(to_strides)}](
                    const float* x, const float*, float* y) { copy(own, x, y); }};
      },
      "from_start"_a, "to_start"_a, "size"_a, "zeros"_a, "extents"_a, "from_strides"_a, "to_strides"_a);
  m.def(
      "mean_call",
      [](int64_t rows, int64_t count) -> Step { return {[=](const float* x, const float*, float* y) { mean(x, rows, count, y); }}; }, "rows"_a,
      "count"_a);
  m.def(
      "small_product_call",
      [](Address weight, Address bias, bool relu, int64_t rows, int64_t columns, int64_t batch) -> Step {
        return {[=](const float* x, const float*, float* y) {
          small_product(at<const float>(weight), at<const float>(bias), relu, rows, columns, batch, x, y);
        }};
      },
      "weight"_a, "bias"_a, "relu"_a, "rows"_a, "columns"_a, "batch"_a);
  nb::class_<Program>(m, "Program")
      .def(nb::init<int64_t, std::vector<int64_t>, int64_t>(), "outside"_a, "offsets"_a, "size"_a)
      .def(
          "add", [](Program& self, const Step& step, int64_t x, int64_t added, int64_t y) { self.add(step.call, x, added, y); },
          nb::keep_alive<1, 2>(), "call"_a, "x"_a, "added"_a, "y"_a)
      .def("run", &Program::run, nb::call_guard<nb::gil_scoped_release>(), "addresses"_a);
}

template <class V>
void bind_columns(nb::module_& m, const char* suffix) {
  nb::class_<Columns<V>>(m, (std::string("Columns") + suffix).c_str())
      .def(
          "__init__",
          [](Columns<V>* self, int64_t rows, int64_t columns, Address weight, Address scales) {
            new (self) Columns<V>{rows, columns, at<const V>(weight), at<const float>(scales)};
          },
          "rows"_a, "columns"_a, "weight"_a, "scales"_a)
      .def(
          "spmv",
          [](const Columns<V>& self, Address bias, bool relu, Address x, Address y, int64_t batch, int64_t threads) {
            columns_spmv(self, at<const float>(bias), relu, at<const float>(x), at<float>(y), batch, threads);
          },
          nb::call_guard<nb::gil_scoped_release>(), "bias"_a, "relu"_a, "x"_a, "y"_a, "batch"_a, "threads"_a);
  nb::class_<ColumnLists<V>>(m, (std::string("ColumnLists") + suffix).c_str())
      .def(
          "__init__",
          [](ColumnLists<V>* self, int64_t rows, int64_t columns, int64_t width, Address starts, Address places, Address values, Address scales) {
            new (self) ColumnLists<V>{rows, columns, width, at<const int32_t>(starts), at<const uint16_t>(places), at<const V>(values),
                                      at<const float>(scales)};
          },
          "rows"_a, "columns"_a, "width"_a, "starts"_a, "places"_a, "values"_a, "scales"_a)
      .def(
          "unpack",
          [](const ColumnLists<V>& self, Address dense, int64_t threads) { unpack_columns(self, at<float>(dense), threads); },
          nb::call_guard<nb::gil_scoped_release>(), "dense"_a, "threads"_a)
      .def(
          "spmv",
          [](const ColumnLists<V>& self, Address bias, bool relu, Address x, Address y, int64_t batch, int64_t threads) {
            columns_spmv(self, at<const float>(bias), relu, at<const float>(x), at<float>(y), batch, threads);
          },
          nb::call_guard<nb::gil_scoped_release>(), "bias"_a, "relu"_a, "x"_a, "y"_a, "batch"_a, "threads"_a);
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "The CPU kernels of truesparse. Addresses are trusted: use truesparse.ops.cpu, which checks.";
  m.def("isa", [] { return std::string(isa_name(current_isa())); });
  m.def("use_isa", &use_isa, "name"_a);
  m.def("supported_isas", &supported_isas);
  m.def("threading", &threading);
  m.def(
      "multiply_adds", [](int64_t rounds, int64_t threads) { return multiply_adds(current_isa(), rounds, threads); },
      nb::call_guard<nb::gil_scoped_release>(), "rounds"_a, "threads"_a);

  nb::class_<Matrix>(m, "Matrix")
      .def(
          "__init__",
          [](Matrix* self, int64_t rows, int64_t columns, Address indptr, Address indices) {
            new (self) Matrix{rows, columns, at<const int32_t>(indptr), at<const int32_t>(indices)};
          },
          "rows"_a, "columns"_a, "indptr"_a, "indices"_a);

  nb::class_<SharedRows>(m, "SharedRows")
      .def(
          "__init__",
          [](SharedRows* self, int64_t rows, int64_t columns, Address indptr, Address indices, int64_t alike) {
            new (self) SharedRows{rows, columns, at<const int32_t>(indptr), at<const int32_t>(indices), alike};
          },
          "rows"_a, "columns"_a, "indptr"_a, "indices"_a, "alike"_a);

  nb::class_<Runs>(m, "Runs")
      .def(
          "__init__",
          [](Runs* self, int64_t rows, int64_t columns, Address indptr, Address indices, Address permutation, int64_t width, int64_t parts,
             int64_t rows_per_group, int64_t threads) {
            new (self) Runs(rows, columns, at<const int32_t>(indptr), at<const int32_t>(indices), at<const int32_t>(permutation), width, parts, rows_per_group,
                            threads);
          },
          nb::call_guard<nb::gil_scoped_release>(), "rows"_a, "columns"_a, "indptr"_a, "indices"_a, "permutation"_a, "width"_a, "parts"_a,
          "rows_per_group"_a, "threads"_a)
      .def_ro("alike", &Runs::alike)
      .def_prop_ro("nbytes", &Runs::bytes);

  nb::class_<Convolution>(m, "Convolution")
      .def(
          "__init__",
          [](Convolution* self, int64_t in_channels, int64_t out_channels, std::vector<int64_t> kernel, std::vector<int64_t> stride,
             std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups) {
            const auto pair = [](const std::vector<int64_t>& both) { return Pair{both.at(0), both.at(1)}; };
            new (self) Convolution{in_channels, out_channels, pair(kernel), pair(stride), pair(padding), pair(dilation), groups};
          },
          "in_channels"_a, "out_channels"_a, "kernel"_a, "stride"_a, "padding"_a, "dilation"_a, "groups"_a);

  nb::class_<PlannedConvolution>(m, "PlannedConvolution")
      .def(
          "__init__",
          [](PlannedConvolution* self, const Convolution& convolution, Address indptr, Address indices, Address values, Address bias, float low,
             float high, bool pool, int64_t batch, int64_t height, int64_t width, int64_t threads) {
            new (self) PlannedConvolution(convolution, at<const int32_t>(indptr), at<const int32_t>(indices), at<const float>(values),
                                          at<const float>(bias), Finish{{low, high}, pool}, batch, {height, width}, threads);
          },
          "convolution"_a, "indptr"_a, "indices"_a, "values"_a, "bias"_a, "low"_a, "high"_a, "pool"_a, "batch"_a, "height"_a, "width"_a, "threads"_a)
      .def(
          "run", [](const PlannedConvolution& self, Address x, Address y) { self.run(at<const float>(x), at<float>(y)); },
          nb::call_guard<nb::gil_scoped_release>(), "x"_a, "y"_a)
      .def(
          "call",
          [](const PlannedConvolution& self) -> Step { return {[&self](const float* x, const float*, float* y) { self.run(x, y); }}; },
          nb::keep_alive<0, 1>())
      .def_prop_ro("nbytes", &PlannedConvolution::bytes);

  m.def(
      "transpose",
      [](int64_t rows, int64_t columns, Address indptr, Address indices, Address t_indptr, Address t_indices, Address permutation,
         int64_t threads) {
        transpose(rows, columns, at<const int32_t>(indptr), at<const int32_t>(indices), columns, nullptr, 1, 1, at<int32_t>(t_indptr),
                  at<int32_t>(t_indices), at<int32_t>(permutation), threads);
      },
      nb::call_guard<nb::gil_scoped_release>(), "rows"_a, "columns"_a, "indptr"_a, "indices"_a, "t_indptr"_a, "t_indices"_a, "permutation"_a,
      "threads"_a);
  m.def(
      "transpose_convolution",
      [](const Convolution& convolution, Address indptr, Address indices, Address t_indptr, Address t_indices, Address permutation) {
        transpose_convolution(convolution, at<const int32_t>(indptr), at<const int32_t>(indices), at<int32_t>(t_indptr), at<int32_t>(t_indices),
                              at<int32_t>(permutation));
      },
      nb::call_guard<nb::gil_scoped_release>(), "convolution"_a, "indptr"_a, "indices"_a, "t_indptr"_a, "t_indices"_a, "permutation"_a);

  bind_paths(m);
  bind_rewiring(m);
  m.def(
      "count_stops",
      [](int64_t rows, int64_t columns, Address indptr, Address indices, Address order, int64_t bits, int64_t shown, Address starts) {
        count_stops(rows, columns, at<const int32_t>(indptr), at<const int32_t>(indices), at<const int32_t>(order), bits, shown,
                    at<int32_t>(starts));
      },
      nb::call_guard<nb::gil_scoped_release>(), "rows"_a, "columns"_a, "indptr"_a, "indices"_a, "order"_a, "bits"_a, "shown"_a, "starts"_a);
  m.def(
      "fill_windows",
      [](int64_t rows, int64_t columns, Address indptr, Address indices, Address values, Address order, int64_t bits, int64_t shown,
         Address first, Address places, Address own) {
        fill_windows(rows, columns, at<const int32_t>(indptr), at<const int32_t>(indices), at<const float>(values), at<const int32_t>(order), bits,
                     shown, at<int32_t>(first), at<uint32_t>(places), at<float>(own));
      },
      nb::call_guard<nb::gil_scoped_release>(), "rows"_a, "columns"_a, "indptr"_a, "indices"_a, "values"_a, "order"_a, "bits"_a, "shown"_a, "first"_a,
      "places"_a, "own"_a);
  bind_programs(m);
  bind_pairs(m);
  m.def("use_large_pages", [](Address array, int64_t bytes) { use_large_pages(at<void>(array), bytes); }, "array"_a, "bytes"_a);
  bind_columns<float>(m, "_float32");
  bind_columns<Bfloat16>(m, "_bfloat16");
  bind_columns<int8_t>(m, "_int8");
  bind_windows<float>(m, "_float32");
  bind_windows<Bfloat16>(m, "_bfloat16");
  bind_windows<int8_t>(m, "_int8");
  bind_verbs<float, float>(m, "_float32");
  bind_verbs<double, double>(m, "_float64");
  bind_verbs<float, Bfloat16>(m, "_bfloat16");

  const auto push = [](auto type) {
    using T = decltype(type);
    return [](TopK& self, Address slab, int64_t row_start, int64_t rows, int64_t columns, Address indptr, Address indices, int64_t threads) {
      self.push(at<const T>(slab), row_start, rows, columns, at<const int32_t>(indptr), at<const int32_t>(indices), threads);
    };
  };
  nb::class_<TopK>(m, "TopK")
      .def(nb::init<int64_t>(), "k"_a)
      .def("push_float32", push(float{}), nb::call_guard<nb::gil_scoped_release>(), "slab"_a, "row_start"_a, "rows"_a, "columns"_a, "indptr"_a,
           "indices"_a, "threads"_a)
      .def("push_float64", push(double{}), nb::call_guard<nb::gil_scoped_release>(), "slab"_a, "row_start"_a, "rows"_a, "columns"_a, "indptr"_a,
           "indices"_a, "threads"_a)
      .def(
          "result", [](TopK& self, Address keys) { return self.result(at<int64_t>(keys)); }, nb::call_guard<nb::gil_scoped_release>(), "keys"_a);

  // Plans live in caches that an exiting interpreter may never clear; that is no leak worth a page of warnings.
  nb::set_leak_warnings(false);
}

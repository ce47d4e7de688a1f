#include "rewiring.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <vector>

#include "layout.h"
#include "threads.h"

namespace truesparse {
namespace {

// body(first row, last + 1) for runs of rows of about equal work.
template <class Body>
void for_rows(int64_t rows, const int32_t* indptr, int64_t threads, Body&& body) {
  const std::vector<int64_t> boundaries = partition(rows, indptr, threads);
  parallel_for(static_cast<int64_t>(boundaries.size()) - 1, threads, [&](int64_t, int64_t item) { body(boundaries[item], boundaries[item + 1]); });
}

template <class Word, class Index>
void move_words(const Word* array, const Index* source, int64_t count, Word fill, Word* moved, int64_t threads) {
  constexpr int64_t chunk = 65536;
  parallel_for((count + chunk - 1) / chunk, threads, [&](int64_t, int64_t item) {
    for (int64_t i = item * chunk, end = std::min(count, i + chunk); i < end; ++i) {
      // In bits, since compilers make a branch of a choice, which would be guessed wrong too often.
      const Index none = source[i] >> (8 * sizeof(Index) - 1);
      const Word grown = static_cast<Word>(none);
      moved[i] = static_cast<Word>((array[source[i] & ~none] & ~grown) | (fill & grown));
    }
  });
}

// An unsigned number that orders as the scores do.
template <class T, class Word>
Word rank(T score) {
  score = score != score ? std::numeric_limits<T>::max() : score + T{0};  // -0 becomes 0
  Word bits;
  std::memcpy(&bits, &score, sizeof bits);
  constexpr int sign = 8 * sizeof(Word) - 1;
  return bits ^ (Word{0} - (bits >> sign) | Word{1} << sign);
}

template <class T, class Word>
void lowest_words(const T* scores, int64_t size, int64_t count, int64_t* indices, int64_t threads) {
  if (!count) return;
  // The rank of the last one chosen, found a digit at a time; `ties` of that rank are chosen in the end.
  constexpr int digit = 16;
  constexpr size_t buckets = size_t{1} << digit;
  Word last = 0;
  int64_t ties = count;
  std::vector<uint32_t> tallies(buckets * static_cast<size_t>(threads));
  for (int shift = 8 * sizeof(Word) - digit; shift >= 0; shift -= digit) {
    const Word known = shift + digit == 8 * sizeof(Word) ? 0 : ~Word{0} << shift << digit;
    std::fill(tallies.begin(), tallies.end(), 0);
    constexpr int64_t chunk = 65536;
    parallel_for((size + chunk - 1) / chunk, threads, [&](int64_t slot, int64_t item) {
      uint32_t* tally = tallies.data() + buckets * static_cast<size_t>(slot);
      for (int64_t i = item * chunk, end = std::min(size, i + chunk); i < end; ++i) {
        const Word word = rank<T, Word>(scores[i]);
        if (((word ^ last) & known) == 0) ++tally[word >> shift & (buckets - 1)];
      }
    });
    for (size_t bucket = 0;; ++bucket) {
      int64_t here = 0;
      for (int64_t slot = 0; slot < threads; ++slot) here += tallies[buckets * static_cast<size_t>(slot) + bucket];
      if (here >= ties) {
        last |= static_cast<Word>(bucket) << shift;
        break;
      }
      ties -= here;
    }
  }
  Word limit = last;
  for (int64_t i = 0, chosen = 0; chosen < count; ++i) {
    const Word word = rank<T, Word>(scores[i]);
    indices[chosen] = i;  // and overwritten by the next, unless chosen
    chosen += word <= limit;
    if (word == last && --ties == 0) limit = last - 1;
  }
}

}  // namespace

void row_of_each(int64_t rows, const int32_t* indptr, int32_t* row) {
  for (int64_t r = 0; r < rows; ++r) std::fill(row + indptr[r], row + indptr[r + 1], static_cast<int32_t>(r));
}

void key_of_each(int64_t rows, int64_t columns, const int32_t* indptr, const int32_t* indices, int64_t* keys) {
  for (int64_t r = 0; r < rows; ++r)
    for (int32_t p = indptr[r]; p < indptr[r + 1]; ++p) keys[p] = r * columns + indices[p];
}

void compress(int64_t rows, int64_t columns, const int64_t* keys, int64_t count, int32_t* indptr, int32_t* indices) {
  int64_t p = 0;
  for (int64_t r = 0; r < rows; ++r) {
    indptr[r] = static_cast<int32_t>(p);
    const int64_t first = r * columns, end = first + columns;
    for (; p < count && keys[p] < end; ++p) indices[p] = static_cast<int32_t>(keys[p] - first);
  }
  indptr[rows] = static_cast<int32_t>(p);
}

int64_t collect(int64_t rows, const int32_t* row, const int32_t* column, int64_t count, int32_t* indptr, int32_t* indices) {
  std::fill(indptr, indptr + rows + 1, 0);
  for (int64_t i = 0; i < count; ++i) ++indptr[row[i] + 1];
  for (int64_t r = 0; r < rows; ++r) indptr[r + 1] += indptr[r];
  for (int64_t i = 0; i < count; ++i) indices[indptr[row[i]]++] = column[i];
  // Each row now begins where it ended: they are sorted and moved up one by one.
  int32_t begin = 0, kept = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t end = indptr[r];
    std::sort(indices + begin, indices + end);
    indptr[r] = kept;
    for (int32_t p = begin; p < end; ++p)
      if (p == begin || indices[p] != indices[kept - 1]) indices[kept++] = indices[p];
    begin = end;
  }
  indptr[rows] = kept;
  return kept;
}

int64_t kept_starts(int64_t rows, const int32_t* indptr, const bool* kept, int32_t* kept_indptr) {
  kept_indptr[0] = 0;
  for (int64_t r = 0; r < rows; ++r) {
    int32_t count = 0;
    for (int32_t p = indptr[r]; p < indptr[r + 1]; ++p) count += kept[p];
    kept_indptr[r + 1] = kept_indptr[r] + count;
  }
  return kept_indptr[rows];
}

void keep(int64_t rows, const int32_t* indptr, const int32_t* indices, const bool* kept, const int32_t* kept_indptr, int32_t* kept_indices,
          int64_t threads) {
  for_rows(rows, indptr, threads, [&](int64_t begin, int64_t end) {
    // Every connection is written, and overwritten by the next unless it is kept: a branch would be guessed wrong too often.
    int32_t n = kept_indptr[begin], p = indptr[begin];
    for (const int32_t last = kept_indptr[end]; n < last; ++p) {
      kept_indices[n] = indices[p];
      n += kept[p];
    }
  });
}

bool grow(int64_t rows, int64_t columns, const int32_t* indptr, const int32_t* indices, const int64_t* keys, int64_t count,
          int32_t* grown_indptr, int32_t* grown_indices, int64_t threads) {
  for (int64_t r = 0, j = 0; r <= rows; ++r) {
    grown_indptr[r] = static_cast<int32_t>(indptr[r] + j);
    for (const int64_t end = (r + 1) * columns; j < count && keys[j] < end; ++j) {
    }
  }
  std::atomic<bool> vacant{true};
  for_rows(rows, grown_indptr, threads, [&](int64_t begin, int64_t end) {
    bool apart = true;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t first = r * columns;
      const int32_t *a = indices + indptr[r], *a_end = indices + indptr[r + 1];
      const int64_t *b = keys + (grown_indptr[r] - indptr[r]), *b_end = keys + (grown_indptr[r + 1] - indptr[r + 1]);
      int32_t* to = grown_indices + grown_indptr[r];
      while (a < a_end && b < b_end) {
        const int32_t x = *a, y = static_cast<int32_t>(*b - first);
        apart &= x != y;
        *to++ = std::min(x, y);
        a += x <= y;
        b += y < x;
      }
      to = std::copy(a, a_end, to);
      for (; b < b_end; ++b) *to++ = static_cast<int32_t>(*b - first);
    }
    if (!apart) vacant = false;
  });
  return vacant;
}

void follow(int64_t rows, int64_t columns, const int32_t* old_indptr, const int32_t* old_indices, const int32_t* new_indptr,
            const int32_t* new_indices, int32_t* source, int64_t threads) {
  const bool table_pays = columns <= old_indptr[rows] + new_indptr[rows];
  for_rows(rows, new_indptr, threads, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> where(table_pays ? static_cast<size_t>(columns) : 0, -1);  // of each column, the last connection so far
    for (int64_t r = begin; r < end; ++r) {
      const int32_t first = old_indptr[r];
      int64_t i = first, j = new_indptr[r];
      const int64_t i_end = old_indptr[r + 1], j_end = new_indptr[r + 1];
      if (table_pays) {
        for (; i < i_end; ++i) where[old_indices[i]] = static_cast<int32_t>(i);
        for (; j < j_end; ++j) {
          const int32_t at = where[new_indices[j]];
          source[j] = at < first ? -1 : at;
        }
        continue;
      }
      while (i < i_end && j < j_end) {
        const int32_t x = old_indices[i], y = new_indices[j];
        source[j] = x == y ? static_cast<int32_t>(i) : -1;  // written anew until the old column has caught up
        i += x <= y;
        j += y <= x;
      }
      std::fill(source + j, source + j_end, -1);
    }
  });
}

template <class Index>
void move(int64_t bytes, const void* array, const Index* source, int64_t count, const void* fill, void* moved, int64_t threads) {
  const auto words = [&](auto word) {
    std::memcpy(&word, fill, sizeof word);
    move_words(static_cast<const decltype(word)*>(array), source, count, word, static_cast<decltype(word)*>(moved), threads);
  };
  switch (bytes) {
    case 1: return words(uint8_t{});
    case 2: return words(uint16_t{});
    case 4: return words(uint32_t{});
    case 8: return words(uint64_t{});
  }
}

template void move<int32_t>(int64_t, const void*, const int32_t*, int64_t, const void*, void*, int64_t);
template void move<int64_t>(int64_t, const void*, const int64_t*, int64_t, const void*, void*, int64_t);

template <>
void lowest<float>(const float* scores, int64_t size, int64_t count, int64_t* indices, int64_t threads) {
  lowest_words<float, uint32_t>(scores, size, count, indices, threads);
}

template <>
void lowest<double>(const double* scores, int64_t size, int64_t count, int64_t* indices, int64_t threads) {
  lowest_words<double, uint64_t>(scores, size, count, indices, threads);
}

void place(const double* sums, int64_t size, const double* wanted, int64_t count, int64_t* places, int64_t threads) {
  // The range is cut into as many equal parts as there are sums, and the first sum beyond the beginning of each is noted. Rounding may put
  // a number into the part beside its own, so the search goes back first.
  const double parts = static_cast<double>(size) / sums[size - 1];
  std::vector<int32_t> firsts(static_cast<size_t>(size));
  for (int64_t part = 0, i = 0; part < size; ++part) {
    while (i < size - 1 && sums[i] * parts <= static_cast<double>(part)) ++i;
    firsts[part] = static_cast<int32_t>(i);
  }
  constexpr int64_t chunk = 65536;
  parallel_for((count + chunk - 1) / chunk, threads, [&](int64_t, int64_t item) {
    for (int64_t j = item * chunk, end = std::min(count, j + chunk); j < end; ++j) {
      int64_t i = firsts[static_cast<int64_t>(std::clamp(wanted[j] * parts, 0.0, static_cast<double>(size - 1)))];
      while (i > 0 && sums[i - 1] > wanted[j]) --i;
      while (i < size - 1 && sums[i] <= wanted[j]) ++i;
      places[j] = i;
    }
  });
}

int64_t accept(const int64_t* present, int64_t present_count, const int64_t* taken, int64_t taken_count, const int64_t* drawn,
               int64_t drawn_count, int64_t* merged, int64_t* refused) {
  int64_t p = 0, t = 0, n = 0, last = -1, accepted = 0;
  for (int64_t i = 0; i < drawn_count; ++i) {
    const int64_t key = drawn[i];
    for (; p < present_count && present[p] < key; ++p) {
    }
    for (; t < taken_count && taken[t] < key; ++t) merged[n++] = taken[t];
    const bool free = key != last && !(p < present_count && present[p] == key) && !(t < taken_count && taken[t] == key);
    if (free) merged[n++] = key;
    else *refused++ = key;
    accepted += free;
    last = key;
  }
  std::copy(taken + t, taken + taken_count, merged + n);
  return accepted;
}

}  // namespace truesparse

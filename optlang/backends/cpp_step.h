// What every generated C++ kernel ends with: the step of many parameters, cut into pieces that threads take.
//
// A parameter that is small makes its whole step in one thread. A large one is cut: where nothing is reduced, into pieces
// that keep all threads busy; where something is, into pieces of one size, so that no sum depends on the threads.

// Elements below which no thread but the caller's is worth waking, and elements of a piece at most.
constexpr int64_t grain = 32768, longest = 65536;

struct Piece {
  Row* row;
  int64_t begin, end;
};

void whole(Row& row, const real* c) {
  double parts[sums + 1];
  ready(row, c);
  for (int i = 0; i < sweeps; ++i) {
    sweep[i](row, 0, row.size, c, parts);
    finish[i](row, c, parts, 1);
  }
  done(row, c);
}

void update(int64_t count, const int64_t* sizes, void* const* at, const real* c, int threads) {
  std::vector<Row> rows(count);
  std::vector<Piece> pieces;
  std::vector<Row*> cut;
  int64_t elements = 0;
  for (int64_t i = 0; i < count; ++i) elements += sizes[i];
  int64_t length = longest;
  if (sliced) {
    length = elements / (8 * threads) + 1;
    length = std::min(std::max((length + 63) / 64 * 64, grain), longest);
  }
  pieces.reserve(count + elements / length);
  for (int64_t i = 0; i < count; ++i) {
    Row& row = rows[i];
    row.size = sizes[i];
    row.at = at + i * tensors;
    if (!sliced && row.size > length) {
      cut.push_back(&row);
    } else {
      for (int64_t begin = 0; begin < row.size; begin += length)
        pieces.push_back({&row, begin, std::min(begin + length, row.size)});
    }
  }
  const bool many = threads > 1 && elements >= grain;
  // Small tensors are taken several at a time.
  const int several = std::max<int64_t>(1, pieces.size() * (grain / 4) / (elements + 1));
  #pragma omp parallel for schedule(dynamic, several) num_threads(threads) if (many)
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    if (piece.end - piece.begin == piece.row->size) {
      whole(*piece.row, c);
    } else {  // nothing is reduced, and no number of the parameter is written
      Row row = *piece.row;
      ready(row, c);
      sweep[0](row, piece.begin, piece.end, c, nullptr);
    }
  }
  for (Row* row : cut) {
    const int64_t n = (row->size + length - 1) / length;
    std::vector<double> parts(n * sums);
    ready(*row, c);
    for (int s = 0; s < sweeps; ++s) {
      #pragma omp parallel for schedule(dynamic) num_threads(threads) if (many)
      for (int64_t i = 0; i < n; ++i)
        sweep[s](*row, i * length, std::min((i + 1) * length, row->size), c, parts.data() + i * sums);
      finish[s](*row, c, parts.data(), n);
    }
    done(*row, c);
  }
}

}  // namespace

extern "C" void optlang_update(
    int64_t count, const int64_t* sizes, void* const* at, const void* coefficients, int threads) {
  update(count, sizes, at, static_cast<const real*>(coefficients), threads);
}

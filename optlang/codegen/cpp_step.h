// What every generated C++ kernel ends with: the step of many parameters, cut into chunks that threads take.
//
// A parameter that is small makes its whole step in one thread. A large one is cut: where chunks need nothing of each
// other, into as many as keep all threads busy; where they do, into chunks whose size depends on the parameter alone, so
// that no sum depends on the threads.

// Elements below which no thread but the caller's is worth waking, elements of a chunk at most and of the part of it that
// is worked on at once, chunks of a parameter that leave parts of tensors, and sizes of a dimension that suit a lane.
constexpr int64_t grain = 32768, longest = 65536, block = 4096, most = 64, wide = 16;

// Memory of one thread.
struct Memory {
  std::vector<double> numbers;
  double* of(int64_t size) {
    if (static_cast<int64_t>(numbers.size()) < size) numbers.resize(size);
    return numbers.data();
  }
};

struct Scratch {
  Memory kept, parts, local, numbers;
};

// What a parameter has besides its tensors' addresses and its sizes if some are kept in codes: addresses of their scales,
// how many numbers a row has, the place of the first of them in the whole tensor, and what random numbers are drawn by, for
// each of the tensors.
constexpr int pointers = tensors + coded_count, counts = rank + (coded_count ? 2 + coded_count : 0);

// Elements of tensors in codes that are numbers at a time: with those of other tensors, they stay in the nearest cache.
constexpr int64_t slice = 512;

// Elements that become numbers right before their step. Where vectors are long, divisions and roots take most of the time of
// a step, and the processor does this meanwhile if it is not too far ahead.
#if defined(OPTLANG_LANES) && OPTLANG_LANES == 16
constexpr int64_t piece = 128;
#else
constexpr int64_t piece = slice;
#endif

struct Chunk {
  Row* row;
  int64_t begin, end;
};

bool fits(const Plan<Row>& plan, const int64_t* n) {
  for (int d = plan.present; d < rank; ++d)
    if (n[d] != 1) return false;
  return true;
}

bool better(const Plan<Row>& plan, const Plan<Row>& other, const int64_t* n) {
  return plan.present < other.present || (n[other.lane] < wide && n[plan.lane] > n[other.lane]);
}

const Plan<Row>* chosen(const int64_t* n, int64_t size) {
  constexpr int count = sizeof(plans) / sizeof(plans[0]);
  const bool second = n[0] == 1 || (n[0] < most && size / n[0] > longest);
  const int chunked = second ? plans[count - 1].chunked : 0;
  const Plan<Row>* best = nullptr;
  for (const Plan<Row>& plan : plans)  // the last dimension comes first
    if (plan.chunked == chunked && fits(plan, n) && (!best || better(plan, *best, n))) best = &plan;
  return best;
}

// The sizes of tensors by the dimensions that are known here, where those of the view are more.
std::vector<int64_t> merged(int64_t count, const int64_t* sizes) {
  std::vector<int64_t> found(count * rank, 1);
  for (int64_t i = 0; i < count; ++i)
    for (int d = 0; d < viewed; ++d) found[i * rank + grouped[d]] *= sizes[i * viewed + d];
  return found;
}

Row row_of(const int64_t* n, void* const* at) {
  Row row;
  row.n = n;
  row.at = at;
  row.size = 1;
  for (int d = 0; d < rank; ++d) row.size *= n[d];
  if (!row.size) return row;  // nothing is done for it
  row.plan = chosen(n, row.size);
  row.count = n[row.plan->chunked];
  const int64_t each = row.size / row.count, least = row.plan->lane == row.plan->chunked ? 4 * wide : 1;
  row.step = rank == 1 ? row.count : std::min(row.count, std::max(least, block / each));
  row.parts = row.plan->parts_size(row);
  row.kept = nullptr;
  return row;
}

void whole(Row& row, const real* c, Scratch& scratch) {
  const Plan<Row>& plan = *row.plan;
  row.kept = scratch.kept.of(plan.kept_size(row));
  double* const parts = scratch.parts.of(row.parts);
  double* const local = scratch.local.of(plan.local_size(row));
  plan.ready(row, c);
  for (int i = 0; i < plan.sweeps; ++i) {
    plan.sweep[i](row, 0, row.count, c, parts, local);
    plan.finish[i](row, c, parts, 1);
  }
  plan.done(row, c);
}

// The size of the largest blocks. Where one of them begins, blocks of all tensors do.
constexpr int64_t widest() {
  int64_t found = 1;
  for (const Coded& each : coded) found = std::max(found, each.block);
  return found;
}

// The block of that size that an element is in.
Block block_of(const Row& row, int64_t element) {
  constexpr int64_t size = widest();
  const int64_t columns = row.n[rank];
  return Block({columns, element / columns, element}, size);
}

// The last element at or before another one where a block of every tensor in codes begins.
int64_t aligned(const Row& row, int64_t element) {
  return element < row.size ? block_of(row, element).begin : row.size;
}

// A parameter with numbers in the place of some of its codes, in memory of our own.
struct Numbers {
  const Row& row;
  Place from;
  int64_t size;
  float* memory;
  void* at[pointers];
  Row own;

  Numbers(const Row& row, const Place& from, int64_t end, Memory& memory)
      : row(row), from(from), size(end - from.element),
        memory(reinterpret_cast<float*>(memory.of(coded_count * size / 2 + coded_count))), own(row) {
    std::copy(row.at, row.at + pointers, at);
    for (int k = 0; k < coded_count; ++k) at[coded[k].tensor] = of(k) - from.element;
    own.at = at;
  }
  Numbers(const Numbers&) = delete;

  float* of(int k) { return memory + k * size; }
  void decode(const Place& begin, int64_t end) {
    for (int k = 0; k < coded_count; ++k) {
      float* const to = of(k) + (begin.element - from.element);
      coded[k].decode(row.at[coded[k].tensor], row.at[tensors + k], begin, end, to);
    }
  }
  void decode() { decode(from, from.element + size); }
  void encode(uint32_t draw) {
    for (int k = 0; k < coded_count; ++k) {
      const uint32_t first = static_cast<uint32_t>(row.n[rank + 1]), key = static_cast<uint32_t>(row.n[rank + 2 + k]) ^ draw;
      coded[k].encode(of(k), row.at[coded[k].tensor], row.at[tensors + k], from, from.element + size, {first, key});
    }
  }
};

// Takes some elements of a parameter: all of them, or some of one that may be cut anywhere.
void take(const Chunk& chunk, const real* c, Scratch& scratch, uint32_t draw) {
  const bool all = chunk.end - chunk.begin == chunk.row->count;
  const auto part = [&](Row& row, int64_t begin, int64_t end) {
    row.plan->sweep[0](row, begin, end, c, nullptr, scratch.local.of(row.plan->local_size(row)));
  };
  if constexpr (coded_count > 0) {
    if (!chunk.row->plan->sliced) {
      Numbers numbers(*chunk.row, {chunk.row->n[rank], 0, 0}, chunk.row->size, scratch.numbers);
      numbers.decode();
      whole(numbers.own, c, scratch);
      numbers.encode(draw);
      return;
    }
    for (Block block = block_of(*chunk.row, chunk.begin); block.begin < chunk.end;) {
      Place from = block.place();
      do {
        block.next();
      } while (block.end - from.element <= slice && block.begin < chunk.end);
      Numbers numbers(*chunk.row, from, block.begin, scratch.numbers);
      while (from.element < block.begin) {
        const int64_t end = std::min(from.element + piece, block.begin);
        numbers.decode(from, end);
        part(numbers.own, from.element, end);
        from.move(end);
      }
      numbers.encode(draw);
    }
  } else if (all) {
    whole(*chunk.row, c, scratch);
  } else {  // nothing is kept for the whole step
    Row row = *chunk.row;
    part(row, chunk.begin, chunk.end);
  }
}

void update(int64_t count, const int64_t* sizes, void* const* at, const real* c, int threads, uint32_t draw) {
  const std::vector<int64_t> ours = rank < viewed ? merged(count, sizes) : std::vector<int64_t>();
  const int64_t* const known = rank < viewed ? ours.data() : sizes;
  std::vector<Row> rows(count);
  std::vector<Chunk> chunks;
  std::vector<Row*> cut;
  int64_t elements = 0;
  for (int64_t i = 0; i < count; ++i) {
    rows[i] = row_of(known + i * counts, at + i * pointers);
    elements += rows[i].size;
  }
  const int64_t fair = (elements / (8 * threads) + 64) / 64 * 64;
  const int64_t length = std::min(std::max(fair, grain), longest);
  chunks.reserve(count + elements / length);
  for (Row& row : rows) {
    if (!row.size) continue;
    if (!row.plan->sliced) {
      if (row.size > longest && row.count > 1) {
        cut.push_back(&row);
      } else {
        chunks.push_back({&row, 0, row.count});
      }
      continue;
    }
    const int64_t taken = std::max(coded_count ? widest() : 1, length / (row.size / row.count));
    for (int64_t begin = 0; begin < row.count;) {
      const int64_t end = coded_count ? aligned(row, begin + taken) : std::min(begin + taken, row.count);
      chunks.push_back({&row, begin, end});
      begin = end;
    }
  }
  const bool many = threads > 1 && elements >= grain;
  // Small tensors are taken several at a time.
  const int several = std::max<int64_t>(1, chunks.size() * (grain / 4) / (elements + 1));
  #pragma omp parallel num_threads(threads) if (many)
  {
    Scratch scratch;
    #pragma omp for schedule(dynamic, several)
    for (size_t i = 0; i < chunks.size(); ++i) take(chunks[i], c, scratch, draw);
  }
  for (Row* row : cut) {
    const Plan<Row>& plan = *row->plan;
    int64_t taken = std::max<int64_t>(1, longest / (row->size / row->count));
    if (rank > 1) taken = std::max(taken, (row->count + most - 1) / most);
    const int64_t n = (row->count + taken - 1) / taken;
    std::vector<double> kept(plan.kept_size(*row)), parts(n * row->parts);
    row->kept = kept.data();
    plan.ready(*row, c);
    for (int s = 0; s < plan.sweeps; ++s) {
      #pragma omp parallel num_threads(threads) if (many)
      {
        Scratch scratch;
        double* const memory = scratch.local.of(plan.local_size(*row));
        #pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < n; ++i) {
          const auto sweep = [&](Row& row, int64_t begin, int64_t end) {
            plan.sweep[s](row, begin, end, c, parts.data() + i * row.parts, memory);
          };
          const int64_t begin = i * taken, end = std::min(begin + taken, row->count);
          if constexpr (coded_count > 0) {
            const Place from = block_of(*row, begin).place();
            const int64_t to = aligned(*row, end);
            Numbers numbers(*row, from, to, scratch.numbers);
            numbers.decode();
            sweep(numbers.own, from.element, to);
            if (s == plan.sweeps - 1) numbers.encode(draw);
          } else {
            sweep(*row, begin, end);
          }
        }
      }
      plan.finish[s](*row, c, parts.data(), n);
    }
    plan.done(*row, c);
  }
}

}  // namespace

extern "C" void optlang_update(
    int64_t count, const int64_t* sizes, void* const* at, const void* coefficients, int threads, uint32_t draw) {
  update(count, sizes, at, static_cast<const real*>(coefficients), threads, draw);
}

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
  Memory kept, parts, local;
};

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

void update(int64_t count, const int64_t* sizes, void* const* at, const real* c, int threads) {
  const std::vector<int64_t> ours = rank < viewed ? merged(count, sizes) : std::vector<int64_t>();
  const int64_t* const known = rank < viewed ? ours.data() : sizes;
  std::vector<Row> rows(count);
  std::vector<Chunk> chunks;
  std::vector<Row*> cut;
  int64_t elements = 0;
  for (int64_t i = 0; i < count; ++i) {
    rows[i] = row_of(known + i * rank, at + i * tensors);
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
    const int64_t taken = std::max<int64_t>(1, length / (row.size / row.count));
    for (int64_t begin = 0; begin < row.count; begin += taken)
      chunks.push_back({&row, begin, std::min(begin + taken, row.count)});
  }
  const bool many = threads > 1 && elements >= grain;
  // Small tensors are taken several at a time.
  const int several = std::max<int64_t>(1, chunks.size() * (grain / 4) / (elements + 1));
  #pragma omp parallel num_threads(threads) if (many)
  {
    Scratch scratch;
    #pragma omp for schedule(dynamic, several)
    for (size_t i = 0; i < chunks.size(); ++i) {
      const Chunk& chunk = chunks[i];
      if (chunk.end - chunk.begin == chunk.row->count) {
        whole(*chunk.row, c, scratch);
      } else {  // nothing is kept for the whole step
        Row row = *chunk.row;
        row.plan->sweep[0](row, chunk.begin, chunk.end, c, nullptr, scratch.local.of(row.plan->local_size(row)));
      }
    }
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
        Memory local;
        double* const memory = local.of(plan.local_size(*row));
        #pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < n; ++i)
          plan.sweep[s](*row, i * taken, std::min((i + 1) * taken, row->count), c, parts.data() + i * row->parts, memory);
      }
      plan.finish[s](*row, c, parts.data(), n);
    }
    plan.done(*row, c);
  }
}

}  // namespace

extern "C" void optlang_update(
    int64_t count, const int64_t* sizes, void* const* at, const void* coefficients, int threads) {
  update(count, sizes, at, static_cast<const real*>(coefficients), threads);
}

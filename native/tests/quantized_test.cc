// A norm in 8 bits is y, of the usual call, divided by the scale of its row and rounded: in every
// layout, with a given scale, and with the bits of one thread. Rounding at each number and midpoint
// is judged through NumPy.
#include "runtime/thread_pool.h"
#include "variations.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

constexpr QuantizedType kQuantizedTypes[] = {QuantizedType::int8, QuantizedType::float8_e4m3fn,
                                             QuantizedType::float8_e5m2};
constexpr Real kMost[] = {127, 448, 57344};

// The number that a byte stands for.
Real number_of(QuantizedType type, uint8_t byte) {
  if (type == QuantizedType::int8) return static_cast<int8_t>(byte);
  const bool is_e4m3 = type == QuantizedType::float8_e4m3fn;
  const int digits = is_e4m3 ? 3 : 2, bias = is_e4m3 ? 7 : 15, magnitude = byte & 0x7f;
  if (magnitude == (is_e4m3 ? 0x7f : 0x7e)) return std::numeric_limits<Real>::quiet_NaN();
  const int exponent = magnitude >> digits, fraction = magnitude & ((1 << digits) - 1);
  const Real size =
      exponent == 0 ? std::ldexp(Real{1} * fraction, 1 - bias - digits)
                    : std::ldexp(Real{1} * (fraction + (1 << digits)), exponent - bias - digits);
  return byte & 0x80 ? -size : size;
}

// The largest distance from a number to the nearest of the type, at this size.
Real half_step(QuantizedType type, Real size) {
  if (type == QuantizedType::int8) return Real{0.5};
  const bool is_e4m3 = type == QuantizedType::float8_e4m3fn;
  const int least = is_e4m3 ? -6 : -14, digits = is_e4m3 ? 3 : 2;
  const int exponent = size == 0 ? least : std::max(least, std::ilogb(size));
  return std::ldexp(Real{0.5}, exponent - digits);
}

// Bytes of x's shape, and poison around and between them.
struct Bytes {
  Steps steps;
  std::vector<unsigned char> all;
  const Shape& shape;

  Bytes(const Shape& of, bool padded)
      : steps(steps_of(padded ? Layout::padded : Layout::dense, of)),
        all(static_cast<size_t>(of.outer * steps.outer + of.cols * steps.col + of.inner + 64),
            kPoison),
        shape(of) {}
  Array array() { return {&all[32], {steps.outer}, steps.col}; }
  size_t index(int64_t row, int64_t col) const {
    return static_cast<size_t>(32 + row / shape.inner * steps.outer + col * steps.col +
                               row % shape.inner);
  }
  uint8_t get(int64_t row, int64_t col) const { return all[index(row, col)]; }
  bool gaps_are_poison() const {
    std::vector<unsigned char> rest = all;
    for (int64_t row = 0; row < shape.rows(); ++row)
      for (int64_t col = 0; col < shape.cols; ++col) rest[index(row, col)] = kPoison;
    return std::all_of(rest.begin(), rest.end(), [](unsigned char c) { return c == kPoison; });
  }
};

struct Results {
  Bytes q;
  Tensor scales;
};

Results quantize(const Case& given, const Inputs& inputs, QuantizedType type, const void* scale,
                 const Threads& threads) {
  Random random(given.seed + 3);
  Results results = {Bytes(given.shape, given.output_layout == Layout::padded),
                     Tensor(given.compute(), {1, given.rows(), 1}, Layout::dense, random)};
  const Statistics statistics = {nullptr, nullptr, nullptr, {given.shape.inner}};
  Forward job = {problem_of(given, inputs, inputs.x, statistics),
                 given.has_bias ? inputs.bias.data() : nullptr,
                 {}};
  job.quantized = {results.q.array(), type, scale ? nullptr : results.scales.data(), scale};
  CHECK(forward(job, threads) == Status::ok, "memory");
  return results;
}

template <class C>
const void* as_scale(Real scale) {
  static C number;
  number = static_cast<C>(scale);
  return &number;
}

void check(const Case& given) {
  const Inputs inputs = make_inputs(given);
  Outputs outputs = make_outputs(given, inputs);
  CHECK(run_forward(given, inputs, outputs) == Status::ok, "memory");
  for (const QuantizedType type : kQuantizedTypes)
    for (const Real given_scale : {Real{0}, Real{0.0078125}}) {
      const bool in_float64 = given.compute() == DataType::float64;
      const void* const scale = given_scale == 0 ? nullptr
                                : in_float64     ? as_scale<double>(given_scale)
                                                 : as_scale<float>(given_scale);
      const Results got = quantize(given, inputs, type, scale, kAlone);
      const Real most = kMost[static_cast<int>(type)];
      for (int64_t row = 0; row < given.rows(); ++row) {
        Real largest = 0;
        for (int64_t col = 0; col < given.shape.cols; ++col)
          largest = std::max(largest, std::fabs(outputs.y.get(row, col)));
        const Real of_row = scale ? given_scale : got.scales.get(0, row);
        const Real right = scale ? given_scale : largest / most;
        CHECK(std::fabs(of_row - right) <= ulp(right, given.compute()), "%s: scale of row %lld",
              given.text().c_str(), static_cast<long long>(row));
        for (int64_t col = 0; col < given.shape.cols; ++col) {
          const Real quotient = outputs.y.get(row, col) / of_row;
          const Real clamped = std::min(std::max(quotient, -most), most);
          const Real q = number_of(type, got.q.get(row, col));
          const Real slack = type == QuantizedType::int8 && quotient < 0 ? 1 : 0;  // to -128
          CHECK(std::fabs(q - clamped) <=
                    half_step(type, std::fabs(clamped)) * Real{1.00001} + (q < -most ? slack : 0),
                "%s, type %d: q[%lld, %lld] is %Lg, of %Lg", given.text().c_str(),
                static_cast<int>(type), static_cast<long long>(row), static_cast<long long>(col), q,
                quotient);
        }
      }
      CHECK(got.q.gaps_are_poison(), "%s: written beside q", given.text().c_str());
    }
}

void test_every_layout(uint64_t seed) {
  for_each_kind([&](Case given) {
    for (const Shape& shape :
         {Shape{5, 1, 1}, Shape{11, 67, 1}, Shape{3, 1029, 1}, Shape{2, 7, 67}, Shape{3, 5, 2}})
      for (const Layout layout : {Layout::dense, Layout::padded}) {
        given.shape = shape;
        given.x_layout = given.output_layout = layout;
        given.seed = ++seed;
        check(given);
      }
  });
}

// Members have parameters and scales of their own.
void test_members() {
  Case given;
  given.shape = {6, 24, 1};
  given.seed = 77;
  const Inputs inputs = make_inputs(given);
  const Results together = quantize(given, inputs, QuantizedType::int8, nullptr, kAlone);
  Random random(1);
  Results apart = {Bytes(given.shape, false),
                   Tensor(DataType::float32, {1, 6, 1}, Layout::dense, random)};
  const Shape all_parameters = {1, 48, 1};
  Tensor weight(DataType::float32, all_parameters, Layout::dense, random);
  Tensor bias(DataType::float32, all_parameters, Layout::dense, random);
  for (int64_t col = 0; col < 48; ++col) {
    weight.set(0, col, inputs.weight.get(0, col % 24));
    bias.set(0, col, inputs.bias.get(0, col % 24));
  }
  const Statistics statistics = {nullptr, nullptr, nullptr, {2, {}, {0, 0, 0, 1}}};
  Forward job = {problem_of(given, inputs, inputs.x, statistics), bias.data(), {}};
  job.problem.weight = weight.data();
  job.problem.shape.outer = 3;
  job.problem.members.sizes[3] = 2;
  job.problem.x.strides = {48, {}, {0, 0, 0, 24}};
  Array q = apart.q.array();
  q.strides = job.problem.x.strides;
  job.quantized = {q, QuantizedType::int8, apart.scales.data(), nullptr};
  CHECK(forward(job, kAlone) == Status::ok, "memory");
  CHECK(apart.q.all == together.q.all, "q of members differs");
  CHECK(apart.scales.same_rows(together.scales), "the scales of members differ");
}

void test_threads(uint64_t seed) {
  for (const DataType type : {DataType::float32, DataType::bfloat16})
    for (const Shape& shape :
         {Shape{1100, 129, 1}, Shape{1, 3 * 32 * 1024 + 77, 1}, Shape{3, 501, 97}}) {
      Case given;
      given.type = given.parameter_type = type;
      given.shape = shape;
      given.seed = ++seed;
      const Inputs inputs = make_inputs(given);
      set_num_threads(4);
      const Results alone = quantize(given, inputs, QuantizedType::float8_e4m3fn, nullptr, kAlone),
                    shared = quantize(given, inputs, QuantizedType::float8_e4m3fn, nullptr,
                                      pool_threads());
      CHECK(alone.q.all == shared.q.all, "q differs with threads: %s", given.text().c_str());
      CHECK(alone.scales.same_rows(shared.scales), "scales differ with threads");
    }
}

}  // namespace

int main() {
  test_every_layout(1000);
  test_members();
  test_threads(2000);
  return finish();
}

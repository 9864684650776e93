// A gated norm is the norm of the usual kernels in the compute type, times the activated gate, or of
// the product with it; in every layout, overwriting its inputs, and with the bits of one thread. Its
// accuracy is judged through NumPy.
#include "runtime/thread_pool.h"
#include "variations.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

Real sigmoid(Real z) { return 1 / (1 + std::exp(-z)); }

// The activation and its derivative.
struct Activated {
  Real value, derivative;
  Activated(Real z, Activation activation) : value(sigmoid(z)), derivative(value * sigmoid(-z)) {
    if (activation == Activation::sigmoid) return;
    derivative = value + z * derivative;
    value *= z;
  }
};

enum class Overwrites { nothing, x, gate };

struct Gated {
  Case given;
  Random random;
  Activation activation;
  bool norm_first;
  Inputs inputs;
  Tensor gate;

  Gated(const Case& of_case, Activation of_activation, bool is_norm_first)
      : given(of_case),
        random(of_case.seed + 2),
        activation(of_activation),
        norm_first(is_norm_first),
        inputs(make_inputs(of_case)),
        gate(given.type, given.shape, given.output_layout, random) {
    fill(gate, Values::ordinary, random);
  }

  Activated activated(int64_t row, int64_t col) const { return {gate.get(row, col), activation}; }

  // The call of the norm alone.
  Case of_norm() const {
    Case norm = given;
    norm.type = given.compute();
    norm.x_layout = norm.dy_layout = norm.output_layout = Layout::dense;
    return norm;
  }

  // Its inputs: u for x and dn for dy.
  Inputs inputs_of_norm() {
    Inputs norm = make_inputs(given);
    const Case wide = of_norm();
    norm.x = Tensor(wide.type, wide.shape, Layout::dense, random);
    norm.dy = norm.x.copy(random);
    for_each([&](int64_t row, int64_t col) {
      const Real x = inputs.x.get(row, col), dy = inputs.dy.get(row, col);
      const Real act = activated(row, col).value;
      norm.x.set(row, col, norm_first ? x : x * act);
      norm.dy.set(row, col, norm_first ? dy * act : dy);
    });
    return norm;
  }

  template <class F>
  void for_each(F f) const {
    for (int64_t row = 0; row < given.rows(); ++row)
      for (int64_t col = 0; col < given.shape.cols; ++col) f(row, col);
  }

  Forward forward_of(const Outputs& outputs, const Tensor& x, const Tensor& z, const Tensor& y) {
    const Statistics statistics = {given.centered ? outputs.mean.data() : nullptr,
                                   outputs.rstd.data(),
                                   given.centered ? outputs.residual.data() : nullptr,
                                   {given.shape.inner}};
    Forward job = {problem_of(given, inputs, x, statistics),
                   given.has_bias ? inputs.bias.data() : nullptr, y.array()};
    job.gate = {z.array(), activation, norm_first};
    return job;
  }

  void run(Outputs& outputs, const Tensor& dgate, const Threads& threads) {
    const Forward job = forward_of(outputs, inputs.x, gate, outputs.y);
    CHECK(forward(job, threads) == Status::ok, "memory");
    Backward back = {job.problem, inputs.dy.array(), given.wants_dx ? outputs.dx.array() : Array{},
                     given.wants_dweight ? outputs.dweight.data() : nullptr,
                     given.wants_dbias ? outputs.dbias.data() : nullptr};
    back.gate = job.gate;
    if (dgate.rows() != 0) back.dgate = dgate.array();
    back.bias = job.bias;
    CHECK(backward(back, threads) == Status::ok, "memory");
  }

  // Whether a result is near enough: the norm and the activation are a few ulp off at the scale of
  // the row, and the result is rounded.
  void check_near(const char* name, const Tensor& result, const std::vector<Real>& expected) {
    const int64_t cols = given.shape.cols;
    for (int64_t row = 0; row < given.rows(); ++row) {
      Real largest = 0;
      for (int64_t col = 0; col < cols; ++col)
        largest = std::max(largest, std::fabs(expected[static_cast<size_t>(row * cols + col)]));
      const Real allowed = 200 * ulp(largest, given.compute()) + ulp(largest, given.type);
      for (int64_t col = 0; col < cols; ++col) {
        const Real right = expected[static_cast<size_t>(row * cols + col)];
        CHECK(std::fabs(result.get(row, col) - right) <= allowed,
              "%s, activation %d, norm first %d: %s[%lld, %lld] is %Lg, not %Lg",
              given.text().c_str(), static_cast<int>(activation), norm_first, name,
              static_cast<long long>(row), static_cast<long long>(col), result.get(row, col),
              right);
      }
    }
  }

  void check() {
    Outputs outputs = make_outputs(given, inputs);
    Tensor dgate(given.type, given.shape, given.output_layout, random);
    run(outputs, dgate, kAlone);
    const Case wide = of_norm();
    const Inputs of_inputs = inputs_of_norm();
    Outputs norm = test::run(wide, of_inputs);
    std::vector<Real> y, dx, of_gate;
    for_each([&](int64_t row, int64_t col) {
      const Activated act = activated(row, col);
      const Real n = norm.y.get(row, col), du = norm.dx.get(row, col);
      y.push_back(norm_first ? n * act.value : n);
      dx.push_back(norm_first ? du : du * act.value);
      const Real product = norm_first ? inputs.dy.get(row, col) * n : du * inputs.x.get(row, col);
      of_gate.push_back(product * act.derivative);
    });
    check_near("y", outputs.y, y);
    check_near("dx", outputs.dx, dx);
    check_near("dgate", dgate, of_gate);
    for (int64_t col = 0; col < given.shape.cols; ++col) {
      for (const auto& [got, right] :
           {std::pair{&outputs.dweight, &norm.dweight}, {&outputs.dbias, &norm.dbias}}) {
        const Real of_norm = right->get(0, col);
        CHECK(std::fabs(got->get(0, col) - of_norm) <=
                  ulp(of_norm, given.parameter_type) +
                      300 * ulp(static_cast<Real>(given.rows()), given.compute()),
              "%s: dweight or dbias of column %lld is %Lg, not %Lg", given.text().c_str(),
              static_cast<long long>(col), got->get(0, col), of_norm);
      }
    }
    for (const Tensor* each : {&outputs.y, &outputs.dx, &dgate, &outputs.dweight, &outputs.dbias})
      CHECK(each->gaps_are_poison(), "%s: written beside a result", given.text().c_str());
    check_in_place(outputs);
    check_each_alone(outputs, dgate);
  }

  void check_in_place(const Outputs& expected) {
    Outputs outputs = make_outputs(given, inputs);
    Tensor x = inputs.x.copy(random), z = gate.copy(random);
    if (given.x_layout != Layout::broadcast) {
      CHECK(forward(forward_of(outputs, x, gate, x), kAlone) == Status::ok, "memory");
      CHECK(x.same_rows(expected.y), "%s: y in x", given.text().c_str());
    }
    CHECK(forward(forward_of(outputs, inputs.x, z, z), kAlone) == Status::ok, "memory");
    CHECK(z.same_rows(expected.y), "%s: y in the gate", given.text().c_str());
  }

  // What is not wanted changes no bit of the rest.
  void check_each_alone(const Outputs& expected, const Tensor& expected_dgate) {
    const Case before = given;
    for (int wanted = 0; wanted < 4; ++wanted) {
      given.wants_dx = wanted == 0;
      given.wants_dweight = wanted == 1;
      given.wants_dbias = wanted == 2;
      Outputs outputs = make_outputs(given, inputs);
      Tensor dgate;
      if (wanted == 3) dgate = Tensor(given.type, given.shape, given.output_layout, random);
      run(outputs, dgate, kAlone);
      const bool same = wanted == 0   ? outputs.dx.same_rows(expected.dx)
                        : wanted == 1 ? outputs.dweight.same_rows(expected.dweight)
                        : wanted == 2 ? outputs.dbias.same_rows(expected.dbias)
                                      : dgate.same_rows(expected_dgate);
      CHECK(same, "%s: gradient %d alone", given.text().c_str(), wanted);
    }
    given = before;
  }

  // On several threads, and with the bits of one.
  void check_threads() {
    Outputs one = make_outputs(given, inputs), several = make_outputs(given, inputs);
    Tensor dgate_of_one(given.type, given.shape, given.output_layout, random);
    Tensor dgate(given.type, given.shape, given.output_layout, random);
    run(one, dgate_of_one, kAlone);
    run(several, dgate, pool_threads());
    CHECK(several.y.same_rows(one.y) && several.dx.same_rows(one.dx) &&
              several.dweight.same_rows(one.dweight) && several.dbias.same_rows(one.dbias) &&
              dgate.same_rows(dgate_of_one),
          "%s: other bits on several threads", given.text().c_str());
    for (const Tensor* each : {&several.y, &several.dx, &dgate})
      CHECK(each->gaps_are_poison(), "%s: written beside a result", given.text().c_str());
  }
};

Gated gated(const Case& given, int64_t which) {
  return {given, which % 2 ? Activation::silu : Activation::sigmoid, which / 2 % 2 == 0};
}

void test_every_kind_and_layout(uint64_t seed) {
  int64_t which = 0;
  for_each_kind([&](Case given) {
    for (const Shape& shape : {Shape{9, 70, 1}, Shape{37, 5, 1}, Shape{1, 8, 1}, Shape{3, 1100, 1},
                               Shape{2, 5, 70}, Shape{2, 17, 2}, Shape{1, 40, 130}}) {
      Random random(given.seed = ++seed);
      vary_parameters(given, random);
      vary_memory(given, random);
      given.in_place = false;
      given.shape = shape;
      given.x_values = Values::off_zero;
      ++which;
      if (is_taken(seed)) gated(given, which).check();
    }
  });
}

// Large enough for writes past the cache, or for threads; rows that threads share.
void test_large_arrays(uint64_t seed) {
  Case given;
  for (const Shape& shape :
       {Shape{3200, 515, 1}, Shape{2000, 512, 1}, Shape{4, 60, 7000}, Shape{2, 70000, 1}}) {
    for (int64_t which = 0; which < 4; ++which) {
      given.seed = ++seed;
      given.shape = shape;
      given.type = given.parameter_type = which % 3 ? DataType::bfloat16 : DataType::float32;
      if (shape.elements() > 1000000 && which > 1) continue;
      gated(given, which).check_threads();
    }
  }
}

}  // namespace

int main() {
  test_every_kind_and_layout(1000000);
  set_num_threads(3);
  test_large_arrays(2000000);
  return finish();
}

// Norms with a gate: the usual kernels in the compute type, on a batch of rows at a time that stays
// in the cache, and passes over its elements before and after. So x, the gate and the results are
// read and written once, and rounded once.
#pragma once

// to[k] = from[k] * act(gate[k]), for neighboring elements.
template <class From, class Stored>
struct TimesActivation {
  using C = Compute<Stored>;

  const From* from;
  const Stored* gate;
  C* to;
  bool streamed;

  template <bool silu, class Elements>
  LAYERNORM_INLINE void step(const Elements& elements, int64_t at) const {
    const Vector<C> act = activate<silu, C>(elements.read(gate + at)).value;
    elements.write(to + at, elements.read(from + at) * act, streamed);
  }
};

// The gradient of a product behind the norm: n[k] becomes dn[k] = dy[k] * act(gate[k]), and
// dgate[k] = dy[k] * n[k] * act'(gate[k]).
template <class Stored>
struct GradientBehind {
  using C = Compute<Stored>;

  const Stored *dy, *gate;
  C* n;
  Stored* dgate;
  bool streamed;

  template <bool silu, class Elements>
  LAYERNORM_INLINE void step(const Elements& elements, int64_t at) const {
    const Activated<C> act = activate<silu, C>(elements.read(gate + at));
    const Vector<C> dy_here = elements.read(dy + at), n_here = elements.read(n + at);
    elements.write(n + at, dy_here * act.value, false);
    elements.write(dgate + at, dy_here * n_here * act.derivative, streamed);
  }
};

// A product before the norm, u[k] = x[k] * act(gate[k]), that keeps what its gradient needs.
template <class Stored>
struct ProductBefore {
  using C = Compute<Stored>;

  const Stored *x, *gate;
  C *u, *act, *slope;

  template <bool silu, class Elements>
  LAYERNORM_INLINE void step(const Elements& elements, int64_t at) const {
    const Activated<C> activated = activate<silu, C>(elements.read(gate + at));
    elements.write(u + at, elements.read(x + at) * activated.value, false);
    elements.write(act + at, activated.value, false);
    elements.write(slope + at, activated.derivative, false);
  }
};

// Its gradient: dx[k] = du[k] * act(gate[k]), dgate[k] = du[k] * x[k] * act'(gate[k]); where null,
// not wanted.
template <class Stored>
struct GradientBefore {
  using C = Compute<Stored>;

  const C *du, *act, *slope;
  const Stored* x;
  Stored *dx, *dgate;
  bool streamed_dx, streamed_dgate;

  __attribute__((noinline)) void run(int64_t count) const {
    each_vector<C>(count, [&](const auto& elements, int64_t at) {
      const Vector<C> du_here = elements.read(du + at);
      if (dx) elements.write(dx + at, du_here * elements.read(act + at), streamed_dx);
      if (!dgate) return;
      const Vector<C> product = du_here * elements.read(x + at);
      elements.write(dgate + at, product * elements.read(slope + at), streamed_dgate);
    });
  }
};

template <bool silu, class Pass>
__attribute__((noinline)) void apply_as(const Pass& pass, int64_t count) {
  each_vector<typename Pass::C>(
      count, [&](const auto& elements, int64_t at) { pass.template step<silu>(elements, at); });
}
template <class Pass>
inline void apply(const Pass& pass, Activation activation, int64_t count) {
  if (activation == Activation::silu)
    apply_as<true>(pass, count);
  else
    apply_as<false>(pass, count);
}

// y = norm(x) * act(gate), or norm(x * act(gate)).
template <class Stored>
void forward_gated(const ForwardTask& task, int64_t begin, int64_t end) {
  using C = Compute<Stored>;
  const Forward& job = *task.job;
  const Gate& gate = job.gate;
  BufferedRows rows(job.problem, task.threads, sizeof(C));
  const int64_t batch_rows =
      rows.are_contiguous() ? rows_per_batch<C>(job.problem.shape.cols, Cache::third_level) : 1;
  const int64_t bytes = rows.elements(batch_rows) * int64_t{sizeof(C)};
  Workspace workspace(Workspace::needed_for(bytes));
  if (!workspace) return task.status->store(Status::out_of_memory);
  C* const buffer = static_cast<C*>(workspace.take(bytes));
  Forward norm = job;
  norm.problem.type = compute_type(job.problem.type);
  norm.gate = {};
  ForwardTask of_norm = task;
  of_norm.job = &norm;
  of_norm.cache = Cache::second_level;
  of_norm.stream = false;
  const bool copies_x = !std::is_same<Stored, C>::value || !gate.norm_first;
  of_norm.prefetch = task.prefetch && !copies_x;
  for (int64_t first = begin; first < end; first += batch_rows) {
    const int64_t count = std::min(batch_rows, end - first);
    rows.move_to(first, count);
    if (copies_x)
      rows.each_span([&](const Span& span) {
        const Stored* const x = span.of<Stored>(job.problem.x);
        if (gate.norm_first)
          convert(x, buffer + span.at, span.count, false);
        else
          apply(TimesActivation<Stored, Stored>{x, span.of<Stored>(gate.values), buffer + span.at,
                                                false},
                gate.activation, span.count);
      });
    norm.y = rows.in_buffer(buffer);
    if (copies_x) norm.problem.x = norm.y;
    forward_units(of_norm, first, first + count);
    rows.each_span([&](const Span& span) {
      C* const n = buffer + span.at;
      Stored* const y = span.of<Stored>(job.y);
      const bool streamed = can_stream(task.stream, y);
      if (gate.norm_first) {
        const Stored* const z = span.of<Stored>(gate.values);
        if constexpr (std::is_same<Stored, C>::value)
          return apply(TimesActivation<C, C>{n, z, y, streamed}, gate.activation, span.count);
        // Rounded in a loop of its own: together, bfloat16 takes 2 ns a vector longer.
        apply(TimesActivation<C, Stored>{n, z, n, false}, gate.activation, span.count);
      }
      convert(n, y, span.count, streamed);
    });
  }
  if (task.stream) finish_streaming();
}

// The backward of these. The norm's input u is x, or x * act(gate), and its gradient
// dn is dy * act(gate), or dy.
template <class Stored>
class GatedBackward : public Around {
 public:
  using C = Compute<Stored>;

  explicit GatedBackward(const BackwardTask& task)
      : task_(task),
        job_(*task.job),
        rows_(job_.problem, task.threads, sizeof(C)),
        batch_rows_(rows_.are_contiguous() ? rows_per_backward_batch<C>(job_.problem.shape.cols)
                                           : 1),
        bytes_(rows_.elements(batch_rows_) * int64_t{sizeof(C)}),
        workspace_((job_.gate.norm_first ? 2 : 4) * Workspace::needed_for(bytes_)) {
    if (!workspace_) {
      *task.status = Status::out_of_memory;
      return;
    }
    u_ = static_cast<C*>(workspace_.take(bytes_));
    dn_ = static_cast<C*>(workspace_.take(bytes_));
    if (!job_.gate.norm_first) {
      act_ = static_cast<C*>(workspace_.take(bytes_));
      slope_ = static_cast<C*>(workspace_.take(bytes_));
    }
    norm_.problem.type = compute_type(job_.problem.type);
    norm_.gate = {};
    norm_.dgate = {};
    norm_.dtotal = {};
    of_norm_.job = &norm_;
    of_norm_.prefetch = of_norm_.stream = false;
    of_norm_.around = this;
    move_to(0, 0);
  }
  explicit operator bool() const { return static_cast<bool>(workspace_); }

  // The task of the norm alone.
  const BackwardTask& of_norm() const { return of_norm_; }

  void prepare(int64_t unit, int64_t begin, int64_t end) override {
    move_to(unit, 1);
    rows_.each_span(begin, end, [&](const Span& span) { prepare(span); });
  }

  void before(int64_t first, int64_t count) override {
    move_to(first, count);
    if (!job_.gate.norm_first)
      return rows_.each_span([&](const Span& span) {
        apply(ProductBefore<Stored>{span.of<Stored>(job_.problem.x),
                                    span.of<Stored>(job_.gate.values), u_ + span.at, act_ + span.at,
                                    slope_ + span.at},
              job_.gate.activation, span.count);
        convert(span.of<Stored>(job_.dy), dn_ + span.at, span.count, false);
      });
    if (!job_.dgate.data) return rows_.each_span([&](const Span& span) { prepare(span); });
    rows_.each_span([&](const Span& span) {
      convert(span.of<Stored>(job_.problem.x), u_ + span.at, span.count, false);
    });
    normalize(first, count);
    rows_.each_span([&](const Span& span) {
      Stored* const dgate = span.of<Stored>(job_.dgate);
      apply(GradientBehind<Stored>{span.of<Stored>(job_.dy), span.of<Stored>(job_.gate.values),
                                   dn_ + span.at, dgate, can_stream(task_.stream, dgate)},
            job_.gate.activation, span.count);
    });
  }

  void after() override {
    rows_.each_span([&](const Span& span) {
      Stored *const dx = span.of<Stored>(job_.dx), *const dgate = span.of<Stored>(job_.dgate);
      const C* const du = u_ + span.at;
      const bool streamed = can_stream(task_.stream, dx);
      if (!job_.gate.norm_first)
        GradientBefore<Stored>{
            du, act_ + span.at, slope_ + span.at, span.of<Stored>(job_.problem.x),
            dx, dgate,          streamed,         can_stream(task_.stream, dgate)}
            .run(span.count);
      else if (dx)
        convert(du, dx, span.count, streamed);
    });
  }

 private:
  void move_to(int64_t first, int64_t count) {
    rows_.move_to(first, count);
    norm_.problem.x = rows_.in_buffer(u_);
    norm_.dy = rows_.in_buffer(dn_);
    const bool wants_du = job_.dx.data || (job_.dgate.data && !job_.gate.norm_first);
    norm_.dx = wants_du ? norm_.problem.x : Array{};
  }

  void prepare(const Span& span) const {
    const Stored *const x = span.of<Stored>(job_.problem.x), *const dy = span.of<Stored>(job_.dy);
    C *const u = u_ + span.at, *const dn = dn_ + span.at;
    const Stored* const gate = span.of<Stored>(job_.gate.values);
    const bool norm_first = job_.gate.norm_first;
    apply(TimesActivation<Stored, Stored>{norm_first ? dy : x, gate, norm_first ? dn : u, false},
          job_.gate.activation, span.count);
    convert(norm_first ? x : dy, norm_first ? u : dn, span.count, false);
  }

  // Writes the norm of u, which dgate needs, where dn will be.
  void normalize(int64_t first, int64_t count) const {
    Forward norm = {norm_.problem, job_.bias, norm_.dy};
    norm.problem.statistics.mean = norm.problem.statistics.rstd = nullptr;
    norm.problem.statistics.residual = nullptr;
    forward_units({&norm, task_.weight, task_.bias, Cache::second_level, false, false,
                   task_.threads, task_.status},
                  first, first + count);
  }

  const BackwardTask& task_;
  const Backward& job_;
  BufferedRows rows_;
  const int64_t batch_rows_, bytes_;
  Workspace workspace_;
  C *u_ = nullptr, *dn_ = nullptr;
  C *act_ = nullptr, *slope_ = nullptr;  // of the gate, where it comes first
  Backward norm_ = job_;
  BackwardTask of_norm_ = task_;
};

template <class Stored>
void backward_gated(const BackwardTask& task, int64_t begin, int64_t end) {
  const GatedBackward<Stored> gated(task);
  if (gated) backward_blocks(gated.of_norm(), begin, end);
  if (task.stream) finish_streaming();
}

template <class Stored>
void reduce_gated(const BackwardTask& task, int64_t begin, int64_t end) {
  const GatedBackward<Stored> gated(task);
  if (gated) reduce_strips(gated.of_norm(), begin, end);
}

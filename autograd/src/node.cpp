// A node of the autograd graph that carries gradients back by a closure of Rust, and the product of
// oneDNN.

#include <ATen/Config.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/inductor/aoti_torch/c/shim_cpu.h>

#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#if !AT_MKLDNN_ENABLED()
#error "this libtorch was built without oneDNN: take the one of `make setup`"
#endif

using torch::autograd::Node;
using torch::autograd::variable_list;

extern "C" {

// What is known of a closure: how it is called, and how it is given back.
struct AmendClosure {
  void* data;
  // Writes a new tensor, or nothing, for each input that is wanted. False if it panicked.
  bool (*carry)(const void* data, const at::Tensor* gradient, const bool* wanted,
                at::Tensor** gradients);
  void (*drop)(void* data);
};

}  // extern "C"

namespace {

struct Carried final : Node {
  explicit Carried(AmendClosure closure) : closure(closure) {}
  ~Carried() override { give_back(); }

  variable_list apply(variable_list&& arrived) override {
    std::lock_guard<std::mutex> lock(mutex_);
    TORCH_CHECK(closure.data, "gradients flow back through a graph once");
    TORCH_CHECK(!c10::GradMode::is_enabled(), "a gradient written in Rust has no gradient itself");
    const size_t count = num_outputs();
    variable_list carried(count);
    if (!arrived[0].defined()) {
      return carried;
    }
    // Not of `bool`: those of a vector are no array.
    const auto wanted = std::make_unique<bool[]>(count);
    for (size_t input = 0; input < count; ++input) {
      wanted[input] = task_should_compute_output(input);
    }
    std::vector<at::Tensor*> made(count, nullptr);
    const bool is_done = closure.carry(closure.data, &arrived[0], wanted.get(), made.data());
    for (size_t input = 0; input < count; ++input) {
      const std::unique_ptr<at::Tensor> own(made[input]);
      if (own) {
        carried[input] = std::move(*own);
      }
    }
    TORCH_CHECK(is_done, "a gradient written in Rust panicked");
    return carried;
  }

  // What the closure holds is needed no longer: the graph was gone through.
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    give_back();
  }

  std::string name() const override { return "AmendCarried"; }

 private:
  void give_back() {
    if (closure.data) {
      closure.drop(std::exchange(closure.data, nullptr));
    }
  }

  AmendClosure closure;
};

}  // namespace

extern "C" {

// Makes `output`, which is none of the inputs, a function of them, if gradients are gathered for any;
// takes the closure. False if it is one, or libtorch refused.
bool amend_carry_by(at::Tensor* output, at::Tensor* const* inputs, size_t count,
                    AmendClosure closure) noexcept {
  try {
    // From here on the node gives the closure back.
    std::shared_ptr<Carried> node(new Carried(closure), torch::autograd::deleteNode);
    bool is_gathered = false;
    torch::autograd::edge_list edges;
    for (size_t input = 0; input < count; ++input) {
      if (inputs[input]->is_same(*output)) {
        return false;
      }
      is_gathered |= inputs[input]->requires_grad();
      edges.push_back(torch::autograd::impl::gradient_edge(*inputs[input]));
    }
    if (is_gathered && c10::GradMode::is_enabled()) {
      node->set_next_edges(std::move(edges));
      torch::autograd::set_history(*output, node);
    }
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

// A new tensor, or null if oneDNN refused, which is then said on stderr.
at::Tensor* amend_product(at::Tensor* x, at::Tensor* weight) noexcept {
  // A handle is what a pointer to a tensor is called there.
  const auto handle = [](at::Tensor* tensor) { return reinterpret_cast<AtenTensorHandle>(tensor); };
  AtenTensorHandle y = nullptr;
  const auto code = aoti_torch_cpu__linear_pointwise(handle(x), handle(weight), nullptr, "none",
                                                     nullptr, 0, nullptr, &y);
  return code == AOTI_TORCH_SUCCESS ? reinterpret_cast<at::Tensor*>(y) : nullptr;
}

}  // extern "C"

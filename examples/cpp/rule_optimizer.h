// A libtorch optimizer for a rule in a file: `optlang emit RULE.opt --target torchscript -o RULE.pt`.
#pragma once

#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <torch/script.h>
#include <torch/torch.h>

// Hyperparameters of one parameter group, by their names in the formulas; others have default values.
struct RuleOptions : public torch::optim::OptimizerCloneableOptions<RuleOptions> {
  RuleOptions() = default;
  RuleOptions(std::map<std::string, double> given) : values(std::move(given)) {}

  // For the learning-rate schedulers of libtorch.
  double get_lr() const override { return values.at("lr"); }
  void set_lr(const double lr) override { values["lr"] = lr; }

  std::map<std::string, double> values;
};

class RuleOptimizer : public torch::optim::Optimizer {
 public:
  RuleOptimizer(const std::vector<torch::optim::OptimizerParamGroup>& groups, const std::string& file)
      : Optimizer(std::vector<torch::optim::OptimizerParamGroup>{}, std::make_unique<RuleOptions>()), module_(torch::jit::load(file)) {
    for (const auto& group : groups) {
      add_param_group(group);
    }
  }

  // The base class only stores the options of libtorch's own optimizers; this stores ours.
  void add_param_group(const torch::optim::OptimizerParamGroup& group) {
    Optimizer::add_param_group(group);
    if (group.has_options()) {
      param_groups().back().set_options(group.options().clone());
    }
    complete_options();
  }

  // One step of all groups. A parameter without a gradient is not changed.
  torch::Tensor step(LossClosure closure = nullptr) override {
    torch::Tensor loss;
    if (closure != nullptr) {
      at::AutoGradMode enable_grad(true);
      loss = closure();
    }
    std::vector<torch::Tensor> params, grads;
    for (const auto& group : param_groups()) {
      for (const auto& p : group.params()) {
        params.push_back(p);
        grads.push_back(p.grad().defined() ? p.grad() : torch::empty({0}, p.options()));
      }
    }
    push_options();
    module_.get_method("step")({params, grads});
    return loss;
  }

  // A state of a parameter, by its index over all groups.
  torch::Tensor state(const std::string& name, int64_t parameter) {
    return module_.get_method("state")({name, parameter}).toTensor();
  }

  double hyper(const std::string& name, int64_t group = 0) {
    return module_.get_method("hyper")({name, group}).toDouble();
  }

  // Archives contain the rule with its states: `torch::save(optimizer, path)` and `torch::load(optimizer, path)`.
  void save(torch::serialize::OutputArchive& archive) const override {
    std::ostringstream stream;
    module_.save(stream);
    const std::string bytes = stream.str();
    auto held = torch::empty({static_cast<int64_t>(bytes.size())}, torch::kUInt8);
    std::memcpy(held.data_ptr(), bytes.data(), bytes.size());
    archive.write("rule", held, /*is_buffer=*/true);
  }

  void load(torch::serialize::InputArchive& archive) override {
    torch::Tensor held;
    archive.read("rule", held, /*is_buffer=*/true);
    std::istringstream stream(std::string(static_cast<const char*>(held.data_ptr()), held.numel()));
    module_ = torch::jit::load(stream);
    complete_options(/*from_module=*/true);
  }

 private:
  // Add the hyperparameters that a group does not set.
  void complete_options(bool from_module = false) {
    const auto names = module_.get_method("hyper_names")({}).toListRef();
    for (size_t i = 0; i < param_groups().size(); ++i) {
      auto& options = static_cast<RuleOptions&>(param_groups()[i].options());
      for (const auto& name : names) {
        auto& key = name.toStringRef();
        if (from_module || options.values.count(key) == 0) {
          options.values[key] = hyper(key, from_module ? static_cast<int64_t>(i) : 0);
        }
      }
    }
  }

  // Pass changed groups and hyperparameters to the module.
  void push_options() {
    c10::List<int64_t> sizes;
    for (const auto& group : param_groups()) {
      sizes.push_back(static_cast<int64_t>(group.params().size()));
    }
    if (module_.get_method("groups")({}).toIntVector() != sizes.vec()) {
      module_.get_method("set_groups")({sizes});
      complete_options();
    }
    for (size_t i = 0; i < param_groups().size(); ++i) {
      for (const auto& [name, value] : static_cast<RuleOptions&>(param_groups()[i].options()).values) {
        if (hyper(name, static_cast<int64_t>(i)) != value) {
          module_.get_method("set_hyper")({name, value, static_cast<int64_t>(i)});
        }
      }
    }
  }

  torch::jit::Module module_;
};

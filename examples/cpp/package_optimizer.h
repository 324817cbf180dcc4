// An optimizer for a package: `optlang emit RULE.opt --target aoti -o RULE.pt2`. It stores states and counts.
#pragma once

#include <sstream>
#include <string>
#include <vector>

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

class PackageOptimizer {
 public:
  PackageOptimizer(std::vector<torch::Tensor> params, const std::string& file)
      : params_(std::move(params)), held_(params_.size()), model_(file, "model"), start_(file, "start") {
    auto metadata = model_.get_metadata();
    TORCH_CHECK(metadata.at("layout") == "flat", "this example is for rules that see tensors as one dimension");
    std::istringstream names(metadata.at("numbers")), defaults(metadata.at("defaults")), hosted(metadata.at("returned"));
    for (std::string name, value; names >> name && defaults >> value;) {
      names_.push_back(name);
      defaults_.push_back(std::stod(value));
    }
    for (std::string name; hosted >> name;) {
      hosted_.push_back(name);
    }
  }

  // Set a hyperparameter of one parameter, by its index.
  void set_hyper(const std::string& name, double value, size_t parameter) {
    auto& own = held_[parameter].numbers;
    if (own.empty()) {
      own = defaults_;
    }
    own[place(name)] = value;
  }

  void step() {
    torch::NoGradGuard no_grad;
    for (size_t i = 0; i < params_.size(); ++i) {
      if (!params_[i].grad().defined()) {
        continue;
      }
      auto p = params_[i].detach().view(-1);  // packages check nothing: tensors must be dense float32
      auto g = params_[i].grad().contiguous().view(-1);
      auto& held = held_[i];
      if (held.numbers.empty()) {
        held.numbers = defaults_;
      }
      if (held.steps == 0) {
        auto started = start_.run({p, g});
        for (size_t j = 0; j < hosted_.size(); ++j) {
          held.numbers[place(hosted_[j])] = started.back()[j].item<double>();
        }
        started.pop_back();
        held.states = started;
      }
      held.steps += 1;
      for (size_t j = 0; j < names_.size(); ++j) {
        if (names_[j] == "t") {
          held.numbers[j] = static_cast<double>(held.steps);
        } else if (names_[j] == "first") {
          held.numbers[j] = held.steps == 1 ? 1.0 : 0.0;
        }
      }
      std::vector<torch::Tensor> inputs{p, g};
      inputs.insert(inputs.end(), held.states.begin(), held.states.end());
      inputs.push_back(torch::tensor(held.numbers, torch::kFloat64));
      auto outputs = model_.run(inputs);
      for (size_t j = 0; j < hosted_.size(); ++j) {
        held.numbers[place(hosted_[j])] = outputs[0][j].item<double>();
      }
    }
  }

 private:
  struct Held {
    std::vector<torch::Tensor> states;
    std::vector<double> numbers;
    int64_t steps = 0;
  };

  size_t place(const std::string& name) const {
    for (size_t i = 0; i < names_.size(); ++i) {
      if (names_[i] == name) {
        return i;
      }
    }
    TORCH_CHECK(false, "the step is computed from no number that is called ", name);
  }

  std::vector<torch::Tensor> params_;
  std::vector<Held> held_;
  torch::inductor::AOTIModelPackageLoader model_, start_;
  std::vector<std::string> names_, hosted_;
  std::vector<double> defaults_;
};

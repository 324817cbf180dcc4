// Trains a small network with a rule from a file, and prints the loss and a checksum of the parameters at each step:
//
//   train adamw.pt 30            with the TorchScript module
//   train adamw.pt 30 state.pt   the same, its state saved half-way and loaded into a new optimizer
//   train adamw.pt2 30           with the ahead-of-time package
//
// train.py does the same in Python.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>

#include "package_optimizer.h"
#include "rule_optimizer.h"

struct Net : torch::nn::Module {
  Net() {
    first = register_module("first", torch::nn::Linear(8, 16));
    second = register_module("second", torch::nn::Linear(16, 1));
    torch::NoGradGuard no_grad;
    int64_t k = 0;
    for (auto& p : parameters()) {  // no random numbers: both languages must start with the same weights
      p.copy_((torch::sin(torch::arange(p.numel(), torch::kFloat64) * 0.71 + k++) * 0.3).view(p.sizes()));
    }
  }

  torch::Tensor forward(torch::Tensor x) { return second->forward(torch::tanh(first->forward(x))); }

  torch::nn::Linear first{nullptr}, second{nullptr};
};

std::vector<torch::optim::OptimizerParamGroup> groups_of(Net& net) {
  std::vector<torch::Tensor> weights{net.first->weight, net.second->weight}, biases{net.first->bias, net.second->bias};
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(weights, std::make_unique<RuleOptions>(std::map<std::string, double>{{"lr", 0.02}}));
  groups.emplace_back(
      biases, std::make_unique<RuleOptions>(std::map<std::string, double>{{"lr", 0.01}, {"weight_decay", 0.0}}));
  return groups;
}

int train(const std::string& file, int steps, const std::string& state) {
  Net net;
  auto inputs = torch::sin(torch::arange(64 * 8, torch::kFloat64) * 0.37).to(torch::kFloat32).view({64, 8});
  auto targets = (inputs.select(1, 0) * inputs.select(1, 3)).unsqueeze(1);
  const bool package = file.size() > 4 && file.substr(file.size() - 4) == ".pt2";
  std::unique_ptr<RuleOptimizer> rule;
  std::unique_ptr<PackageOptimizer> packaged;
  if (package) {
    packaged = std::make_unique<PackageOptimizer>(
        std::vector<torch::Tensor>{net.first->weight, net.second->weight, net.first->bias, net.second->bias}, file);
    for (size_t i = 0; i < 4; ++i) {
      packaged->set_hyper("lr", i < 2 ? 0.02 : 0.01, i);
    }
    packaged->set_hyper("weight_decay", 0.0, 2);
    packaged->set_hyper("weight_decay", 0.0, 3);
  } else {
    rule = std::make_unique<RuleOptimizer>(groups_of(net), file);
  }
  for (int i = 0; i < steps; ++i) {
    net.zero_grad();
    auto loss = torch::mse_loss(net.forward(inputs), targets);
    loss.backward();
    if (i % 5 == 4) {
      net.second->bias.mutable_grad() = torch::Tensor();  // a parameter without a gradient
    }
    if (package) {
      packaged->step();
    } else {
      if (i == steps / 2) {  // a scheduler would do this
        static_cast<RuleOptions&>(rule->param_groups()[0].options()).set_lr(0.005);
      }
      rule->step();
      if (i == steps / 2 && !state.empty()) {
        torch::save(*rule, state);
        rule = std::make_unique<RuleOptimizer>(groups_of(net), file);
        torch::load(*rule, state);
      }
    }
    double sum = 0.0;
    for (const auto& p : net.parameters()) {
      sum += p.detach().to(torch::kFloat64).abs().sum().item<double>();
    }
    std::printf("%d %.17g %.17g\n", i, loss.item<double>(), sum);
  }
  return 0;
}

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: train RULE.pt|RULE.pt2 STEPS [STATE]\n");
    return 2;
  }
  torch::set_num_threads(1);
  try {
    return train(argv[1], std::atoi(argv[2]), argc > 3 ? argv[3] : "");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

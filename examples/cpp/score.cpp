// Loads an exported package without Python and reproduces its golden response.
//
//   score model.pt2 golden.txt [library.so ...]
//
// golden.txt is what golden.py makes of golden.json: a tensor on each line, name, type, number of dimensions, sizes and
// values; the inputs in the order of the package, then its mapped tables with their files, then the logits. Packages
// with quantized tables need FBGEMM's libraries that register the operator behind them.
#include <dlfcn.h>

#include <fstream>
#include <functional>
#include <iostream>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

static at::Tensor parse(const std::string& line) {
  std::istringstream in(line);
  std::string name, type;
  size_t dimensions = 0;
  in >> name >> type >> dimensions;
  std::vector<int64_t> sizes(dimensions);
  for (auto& size : sizes) in >> size;
  if (name == "mapped") {
    std::string file;
    std::getline(in >> std::ws, file);
    const auto count = std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
    return torch::from_file(file, false, count, type == "uint8" ? torch::kUInt8 : torch::kFloat32).view(sizes);
  }
  const auto kind = type == "int64" ? torch::kInt64 : torch::kFloat32;
  auto values = torch::empty(sizes, torch::kFloat64);
  auto exact = torch::empty(sizes, torch::kInt64);  // a double does not hold every id
  for (int64_t i = 0; i < values.numel(); ++i) {
    if (kind == torch::kInt64) in >> exact.data_ptr<int64_t>()[i];
    else in >> values.data_ptr<double>()[i];
  }
  if (!in) throw std::runtime_error("not a tensor: " + line.substr(0, 60));
  return kind == torch::kInt64 ? exact : values.to(kind);
}

int main(int argc, char** argv) try {
  if (argc < 3) throw std::runtime_error("usage: score model.pt2 golden.txt [library.so ...]");
  for (int i = 3; i < argc; ++i)
    if (!dlopen(argv[i], RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
  std::ifstream file(argv[2]);
  std::vector<at::Tensor> tensors;
  for (std::string line; std::getline(file, line);) tensors.push_back(parse(line));
  if (tensors.size() < 2) throw std::runtime_error(std::string(argv[2]) + ": expected inputs and logits");
  const auto expected = tensors.back();
  tensors.pop_back();

  torch::inductor::AOTIModelPackageLoader model(argv[1]);
  const auto logits = model.run(tensors).at(0);
  const auto difference = (logits - expected).abs().max().item<double>();
  std::cout << logits.numel() << " rows, largest difference " << difference << std::endl;
  return difference < 1e-4 ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << std::endl;
  return 2;
}

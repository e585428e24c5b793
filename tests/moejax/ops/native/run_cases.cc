// Runs the kernels without XLA, on cases from files: for CPUs that are emulated, on which JAX would take too long.
//
// A line "operation dtype name sizes..." of FOLDER/cases is a case. Its operands are raw numbers in FOLDER/name.operand;
// its results go to FOLDER/name.result.threads, computed by 1, 2, 4 and 8 threads.
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>

#include "attention_blocks.h"
#include "experts.h"
#include "linear.h"
#include "rows.h"

namespace moejax {

constexpr float kEps = 1e-5f;

// A pool as the kernels expect one: each task on a thread of its own, and all have ended when the pool is gone.
class Threads {
 public:
  explicit Threads(int64_t count) : count_(count) {}
  ~Threads() {
    for (auto& thread : threads_) thread.join();
  }
  int64_t num_threads() const { return count_; }
  template <typename Task>
  void Schedule(Task task) {
    threads_.emplace_back(std::move(task));
  }

 private:
  int64_t count_;
  std::vector<std::thread> threads_;
};

struct Case {
  std::string folder, name;
  std::vector<int64_t> sizes;
  int64_t threads;

  template <typename T>
  std::vector<T> read(const std::string& operand) const {
    std::ifstream file(folder + "/" + name + "." + operand, std::ios::binary | std::ios::ate);
    if (!file) throw std::runtime_error("no operand " + operand + " of " + name);
    std::vector<T> all(static_cast<size_t>(file.tellg()) / sizeof(T));
    file.seekg(0);
    file.read(reinterpret_cast<char*>(all.data()), all.size() * sizeof(T));
    return all;
  }

  template <typename T>
  void write(const std::string& result, const std::vector<T>& all) const {
    std::ofstream file(folder + "/" + name + "." + result + "." + std::to_string(threads), std::ios::binary);
    file.write(reinterpret_cast<const char*>(all.data()), all.size() * sizeof(T));
  }
};

// Sizes: rows, outputs, inputs. w is packed.
template <typename T>
void run_linear(const Case& one, Threads& pool) {
  const int64_t rows = one.sizes[0], outputs = one.sizes[1], inputs = one.sizes[2];
  const auto x = one.read<T>("x"), w = one.read<T>("w");
  std::vector<float> y(rows * outputs);
  linear<T>(pool, x.data(), rows, inputs, {{Packed<T>{w.data(), outputs, inputs}, y.data()}});
  one.write("y", y);
}

// Sizes: tokens, depth, hidden depth, chosen, experts. Weights are packed.
template <typename T>
void run_experts(const Case& one, Threads& pool) {
  const auto x = one.read<T>("x"), gate = one.read<T>("gate"), up = one.read<T>("up"), down = one.read<T>("down");
  const auto ids = one.read<int32_t>("ids");
  const auto weights = one.read<float>("weights");
  const auto& n = one.sizes;
  std::vector<T> hidden(ids.size() * n[2]);
  std::vector<float> results(ids.size() * n[1]), y(x.size());
  ExpertsCall<T> call{n[0], n[1], n[2], n[3], n[4], x.data(), ids.data(), weights.data(),
                      Packed<T>{gate.data(), n[2], n[1]}, Packed<T>{up.data(), n[2], n[1]},
                      Packed<T>{down.data(), n[1], n[2]}, hidden.data(), results.data(), y.data()};
  run_experts(pool, call);
  one.write("y", y);
}

// Sizes: rows, depth.
template <typename T>
void run_norm(const Case& one, Threads& pool) {
  const auto x = one.read<T>("x"), scale = one.read<T>("scale");
  std::vector<T> y(x.size());
  rms_norm<T>(pool, x.data(), scale.data(), one.sizes[0], one.sizes[1], kEps, y.data());
  one.write("y", y);
}

// Sizes: batch, key/value heads, group, queries, positions, width, window, soft cap, whether there are sinks.
template <typename T>
void run_attend(const Case& one, Threads& pool) {
  const auto q = one.read<T>("q"), k = one.read<T>("k"), v = one.read<T>("v");
  const auto starts = one.read<int32_t>("starts");
  std::vector<float> y(q.size());
  const auto& n = one.sizes;
  const auto sinks = n[8] ? one.read<float>("sinks") : std::vector<float>();
  const float scale = 1.0f / std::sqrt(static_cast<float>(n[5]));
  AttentionCall<T> call{n[0],     n[1],     n[2],     n[3],          n[4],                           n[5],    n[6],
                        scale,    static_cast<float>(n[7]),          q.data(), k.data(),             v.data(),
                        starts.data(), n[8] ? sinks.data() : nullptr, y.data()};
  attend(pool, call);
  one.write("y", y);
}

// Sizes: batch, queries, heads, key/value heads, slots, width. Caches begin as zeros.
template <typename T>
void run_rotate(const Case& one, Threads& pool) {
  const auto q = one.read<float>("q"), k = one.read<float>("k"), v = one.read<float>("v");
  const auto cos = one.read<float>("cos"), sin = one.read<float>("sin");
  const auto starts = one.read<int32_t>("starts");
  const auto& n = one.sizes;
  std::vector<T> rotated(q.size()), keys(n[0] * n[3] * n[4] * n[5]), values(keys.size());
  RotateCall<T> call{n[0],     n[1],     n[2],       n[3],       n[4],          n[5],           q.data(),    k.data(),
                     v.data(), cos.data(), sin.data(), starts.data(), rotated.data(), keys.data(), values.data()};
  rotate_into_cache(pool, call);
  one.write("q", rotated);
  one.write("k", keys);
  one.write("v", values);
}

// Sizes: tokens, experts, chosen.
void run_route(const Case& one) {
  const auto logits = one.read<float>("logits");
  const auto valid = one.read<uint8_t>("valid");
  const int64_t tokens = one.sizes[0], experts = one.sizes[1], chosen = one.sizes[2];
  std::vector<int32_t> ids(tokens * chosen);
  std::vector<float> weights(ids.size());
  FlushDenormals flush;
  route(logits.data(), reinterpret_cast<const bool*>(valid.data()), tokens, experts, chosen, true, 1.0f, ids.data(),
        weights.data());
  one.write("ids", ids);
  one.write("weights", weights);
}

template <typename T>
void run(const std::string& operation, const Case& one, Threads& pool) {
  if (operation == "linear") return run_linear<T>(one, pool);
  if (operation == "experts") return run_experts<T>(one, pool);
  if (operation == "norm") return run_norm<T>(one, pool);
  if (operation == "attend") return run_attend<T>(one, pool);
  if (operation == "rotate") return run_rotate<T>(one, pool);
  if (operation == "route") return run_route(one);
  throw std::runtime_error("no operation " + operation);
}

void run_line(const std::string& folder, const std::string& line, int64_t threads) {
  std::istringstream words(line);
  std::string operation, dtype;
  Case one{folder, "", {}, threads};
  words >> operation >> dtype >> one.name;
  for (int64_t size; words >> size;) one.sizes.push_back(size);
  Threads pool(threads);
  if (dtype == "float32") return run<float>(operation, one, pool);
  if (dtype == "float16") return run<Float16>(operation, one, pool);
  if (dtype == "bfloat16") return run<BFloat16>(operation, one, pool);
  throw std::runtime_error("no dtype " + dtype);
}

}  // namespace moejax

int main(int, char** arguments) {
  const std::string folder = arguments[1];
  std::ifstream cases(folder + "/cases");
  for (std::string line; std::getline(cases, line);) {
    for (int64_t threads : {1, 2, 4, 8}) moejax::run_line(folder, line, threads);
  }
  std::cout << "multiplies bfloat16: " << (moejax::Packs<moejax::BFloat16>::kRegisters == 1) << "\n";
}

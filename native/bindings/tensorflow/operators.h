// The operations that TensorFlow knows us by: a norm, and its backward.
#pragma once

namespace layernorm::tensorflow {

// Once a process, after load_c_api(). The reason why TensorFlow refused, or null.
const char* define_operators();

}  // namespace layernorm::tensorflow

// The operations registered with TensorFlow: a norm and its backward, of x, of x + residual, and
// with a gate; and a norm that quantizes.
#pragma once

namespace layernorm::tensorflow {

// Once a process, after load_c_api(). Returns TensorFlow's error message, or null.
const char* define_operators();

}  // namespace layernorm::tensorflow

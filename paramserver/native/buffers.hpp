// Buffers of numpy, torch and whoever else speaks DLPack or the buffer protocol: checked, borrowed, never copied.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

namespace minutely {

namespace nb = nanobind;

// Keeps the caller's buffer alive for as long as it lives. A length of kAny is taken from the buffer.
template <class T> class Buffer {
  public:
    static constexpr int64_t kAny = -1;

    Buffer(nb::handle object, const char* what, const char* dtype, std::initializer_list<int64_t> shape) {
        constexpr bool kReadOnly = std::is_const_v<T>;
        if (!nb::try_cast(object, array_, false)) {
            const std::string type = nb::cast<std::string>(nb::str(object.type().attr("__name__")));
            throw nb::type_error((std::string(what) + ": expected a contiguous " + (kReadOnly ? "" : "writable ") +
                                  dtype + " CPU buffer (a numpy array or torch tensor), got " + type +
                                  (kReadOnly ? "" : "; it may be read-only"))
                                     .c_str());
        }
        if (array_.device_type() != nb::device::cpu::value)
            fail(what, "must be in CPU memory, got device type ", array_.device_type());
        if (array_.dtype() != nb::dtype<std::remove_const_t<T>>()) {
            const auto got = array_.dtype();
            throw nb::type_error((std::string(what) + ": dtype must be " + dtype + ", got " + name_of(got)).c_str());
        }
        if (array_.ndim() != shape.size()) {
            fail(what, ("must have " + std::to_string(shape.size()) + " dimension(s), got ").c_str(),
                 static_cast<int64_t>(array_.ndim()));
        }
        int64_t stride = 1;
        for (size_t i = shape.size(); i-- > 0;) {
            const auto length = static_cast<int64_t>(array_.shape(i));
            const int64_t wanted = shape.begin()[i];
            if (wanted != kAny && length != wanted) {
                throw nb::value_error((std::string(what) + ": dimension " + std::to_string(i) + " must be " +
                                       std::to_string(wanted) + ", got " + std::to_string(length))
                                          .c_str());
            }
            if (array_.size() != 0 && length != 1 && array_.stride(i) != stride) {
                throw nb::value_error(
                    (std::string(what) + ": must be contiguous in C order; pass a contiguous copy").c_str());
            }
            stride *= length;
        }
        if (reinterpret_cast<uintptr_t>(array_.data()) % alignof(T) != 0) {
            throw nb::value_error((std::string(what) + ": the buffer must be aligned to its elements").c_str());
        }
    }

    T* data() const { return static_cast<T*>(array_.data()); }
    size_t size() const { return array_.size(); }
    int64_t shape(size_t dimension) const { return static_cast<int64_t>(array_.shape(dimension)); }

  private:
    [[noreturn]] static void fail(const char* what, const char* rule, int64_t got) {
        throw nb::value_error((std::string(what) + ": " + rule + std::to_string(got)).c_str());
    }
    static std::string name_of(nb::dlpack::dtype type) {
        const auto code = static_cast<nb::dlpack::dtype_code>(type.code);
        const std::string bits = std::to_string(type.bits);
        if (code == nb::dlpack::dtype_code::Int) return "int" + bits;
        if (code == nb::dlpack::dtype_code::UInt) return "uint" + bits;
        if (code == nb::dlpack::dtype_code::Float) return "float" + bits;
        if (code == nb::dlpack::dtype_code::Bool) return "bool";
        return "another type of " + bits + " bits";
    }

    std::conditional_t<std::is_const_v<T>, nb::ndarray<nb::ro>, nb::ndarray<>> array_;
};

}  // namespace minutely

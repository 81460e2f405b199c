// The kernels are compiled once per instruction set; every binding file picks its table of the level in use.
#pragma once
#include <cstdint>

int level_in_use();  // index into the tables of SPIKING_TABLE

#if defined(__x86_64__)
#define SPIKING_TABLE(Type, name)                                                       \
    namespace spiking_v2 { extern const Type name; }                                    \
    namespace spiking_v3 { extern const Type name; }                                    \
    namespace spiking_v4 { extern const Type name; }                                    \
    static const Type& name() {                                                         \
        const Type* tables[] = {&spiking_v2::name, &spiking_v3::name, &spiking_v4::name}; \
        return *tables[level_in_use()];                                                 \
    }
#else
#define SPIKING_TABLE(Type, name)                       \
    namespace spiking_base { extern const Type name; }  \
    static const Type& name() { return spiking_base::name; }
#endif

template <class T> T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

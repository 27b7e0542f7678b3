// A C host of Wasmtime's C API, built without unwind tables: host LIBWASMTIME.so GUEST.wat DEPTH [thread]
//
// The guest's `run` is entered, leaves through `env.pause`, and is entered again from there, DEPTH times; the last pause says
// READY and stays. `thread`: on a thread of its own.
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct bytes { size_t size; void *data; };
struct value { uint8_t kind; char pad[7]; union { int32_t i32; char all[24]; } of; };
struct func { uint64_t store; char rest[24]; };
struct item { uint8_t kind; char pad[7]; struct func of; };

#define API(X) \
    X(void *, wasm_engine_new, (void)) \
    X(void *, wasmtime_store_new, (void *, void *, void (*)(void *))) \
    X(void *, wasmtime_store_context, (void *)) \
    X(void *, wasmtime_wat2wasm, (const char *, size_t, struct bytes *)) \
    X(void *, wasmtime_module_new, (void *, const uint8_t *, size_t, void **)) \
    X(void *, wasmtime_linker_new, (void *)) \
    X(void *, wasmtime_linker_define_func, (void *, const char *, size_t, const char *, size_t, void *, void *, void *, void (*)(void *))) \
    X(void *, wasmtime_linker_instantiate, (void *, void *, void *, void *, void **)) \
    X(_Bool, wasmtime_instance_export_get, (void *, void *, const char *, size_t, struct item *)) \
    X(void *, wasmtime_func_call, (void *, struct func *, const struct value *, size_t, struct value *, size_t, void **)) \
    X(void *, wasm_functype_new, (struct bytes *, struct bytes *)) \
    X(void, wasm_valtype_vec_new, (struct bytes *, size_t, void **)) \
    X(void *, wasm_valtype_new, (uint8_t)) \
    X(void, wasmtime_error_message, (void *, struct bytes *))
#define DECLARE(result, name, parameters) static result (*name) parameters;
API(DECLARE)

static void *context;
static struct item run;
volatile int sink;

static void check(void *error, const char *what)
{
    struct bytes message = {0};
    if (!error) return;
    wasmtime_error_message(error, &message);
    fprintf(stderr, "%s: %.*s\n", what, (int)message.size, (char *)message.data);
    exit(1);
}

// Many values live over the calls, so that the compiler takes rbp as an ordinary register.
__attribute__((noinline)) static int enter(int a, int b, int c, int d, int e, int f)
{
    int g = a * b, h = c * d, i = e * f, j = a + f, k = b + e, l = c ^ d;
    sink = g;
    if (a) {
        struct value argument = { .kind = 0, .of.i32 = a - 1 }, result;
        void *trap = 0;
        check(wasmtime_func_call(context, &run.of, &argument, 1, &result, 1, &trap), "call");
        g += result.of.i32;
    } else {
        printf("READY pid=%d tid=%d\n", getpid(), gettid());
        fflush(stdout);
        for (;;) pause();
    }
    return g + h * i + j * k + l + a - b + c - d + e - f;
}

static void *callback(void *data, void *caller, const struct value *arguments, size_t n, struct value *results, size_t m)
{
    (void)caller, (void)n, (void)m;
    results[0].kind = 0;
    results[0].of.i32 = enter(arguments[0].of.i32, 1 + sink, 2 + sink, 3, 4, 5) + (int)(size_t)data;
    return 0;
}

static void *start(void *depth)
{
    printf("%d\n", enter((int)(size_t)depth + 1, 1 + sink, 2 + sink, 3, 4, 5));
    return 0;
}

int main(int argc, char **argv)
{
    void *library = argc > 3 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : 0;
    if (!library) { fprintf(stderr, "%s\n", argc > 3 ? dlerror() : "usage: host LIBRARY GUEST.wat DEPTH [thread]"); return 1; }
#define FIND(result, name, parameters) if (!(*(void **)&name = dlsym(library, #name))) { fprintf(stderr, #name "\n"); return 1; }
    API(FIND)
    static char text[1 << 16];
    FILE *file = fopen(argv[2], "rb");
    if (!file) { perror(argv[2]); return 1; }
    struct bytes wasm, parameters, results;
    check(wasmtime_wat2wasm(text, fread(text, 1, sizeof text, file), &wasm), "wat");
    void *engine = wasm_engine_new(), *module, *trap = 0;
    context = wasmtime_store_context(wasmtime_store_new(engine, 0, 0));
    check(wasmtime_module_new(engine, wasm.data, wasm.size, &module), "module");
    void *linker = wasmtime_linker_new(engine), *one[1] = { wasm_valtype_new(0) }, *other[1] = { wasm_valtype_new(0) };
    wasm_valtype_vec_new(&parameters, 1, one);
    wasm_valtype_vec_new(&results, 1, other);
    check(wasmtime_linker_define_func(linker, "env", 3, "pause", 5, wasm_functype_new(&parameters, &results), callback, 0, 0), "define");
    static char instance[64];
    check(wasmtime_linker_instantiate(linker, context, module, instance, &trap), "instantiate");
    if (!wasmtime_instance_export_get(context, instance, "run", 3, &run)) { fprintf(stderr, "no run\n"); return 1; }
    if (argc > 4) {
        pthread_t thread;
        pthread_create(&thread, 0, start, (void *)(size_t)atoi(argv[3]));
        pthread_join(thread, 0);
    } else {
        start((void *)(size_t)atoi(argv[3]));
    }
    return 0;
}

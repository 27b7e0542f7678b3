/* A C program with DWARF for the stop `dwarf`: known values in locals, statics, a struct and inlined code.
 *
 * run(3) -> walk(3) -> .. -> walk(0) -> visit -> scale (inlined with -O1) -> env.stop
 */

__attribute__((import_module("env"), import_name("stop"))) void host_stop(int code);

struct point {
  int x;
  long long weight;
  double height;
};

static int visits = 7;
static struct point origin = {11, 0x1122334455667788LL, 2.5};
static const char greeting[] = "a C guest";

static inline int scale(int value, int factor) {
  int scaled = value * factor;
  host_stop(scaled);
  return scaled + factor;
}

__attribute__((noinline)) static int visit(struct point *p, const char *text) {
  int before = p->x;
  int length = 0;
  while (text[length])
    length++;
  p->x = before + visits;
  return scale(p->x, length) + before;
}

__attribute__((noinline)) static int walk(int depth, struct point *p) {
  volatile int mark = depth * 100;
  if (depth == 0)
    return visit(p, greeting);
  return walk(depth - 1, p) + mark;
}

int run(int depth) {
  struct point here = origin;
  here.height += depth;
  visits++;
  return walk(depth ? depth : 3, &here);
}

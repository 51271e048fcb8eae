/* A plugin of QEMU's (docs/devel/tcg-plugins) that counts the instructions a program executes, system calls left out:
 * the kernel's are not emulated. What it needs of qemu-plugin.h, which Debian does not pack, is declared here. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct block;
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*call)(plugin_id, struct block *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct block *block, int add_u64, void *sum, uint64_t number);
size_t qemu_plugin_tb_n_insns(const struct block *block);
void qemu_plugin_register_atexit_cb(plugin_id id, void (*call)(plugin_id, void *), void *with);

#define EXPORTED __attribute__((visibility("default")))
EXPORTED int qemu_plugin_version = 1;

static uint64_t sum;
static char place[4096];

static void translated(plugin_id id, struct block *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, 0, &sum, qemu_plugin_tb_n_insns(block));
}

static void ended(plugin_id id, void *with)
{
    FILE *out = fopen(place, "w");
    (void)id;
    (void)with;
    if (!out || fprintf(out, "%llu\n", (unsigned long long)sum) < 0 || fclose(out))
        abort();
}

EXPORTED int qemu_plugin_install(plugin_id id, const void *info, int count, char **words)
{
    (void)info;
    if (count != 1 || strncmp(words[0], "out=", 4) || strlen(words[0]) >= sizeof place)
        return 1;
    strcpy(place, words[0] + 4);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}

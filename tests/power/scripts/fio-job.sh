# shellcheck shell=dash
# fio_job N: the job that fills the Nth file, and that verifies it.
fio_job() {
    printf -- '%s ' --name=power --thread --ioengine=psync --rw=randwrite --size=2m --norandommap=0 \
        "--filename=$D/fio-$ROUND/$(($1 % 8))" "--bs=$((4 << $1 % 4))k" "--direct=$(($1 % 2))" "--randseed=$((SEED + $1))" \
        --verify=crc32c --verify_state_save=0
}

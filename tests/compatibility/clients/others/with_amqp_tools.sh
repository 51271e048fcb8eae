#!/bin/sh
# amqp-tools as Debian has them: a process for each message that is published, and one for each that is worked on. They
# know no confirms, so a script does as much as it can: it tries again what did not end well.
if [ "$1" = one ]; then
    # amqp-consume starts this program for each message; its end acknowledges the message.
    number=$(cat)
    echo "$number" >>"$LEDGER"
    exec sleep 0.02
fi
at="--server=127.0.0.1 --port=$AMQP_PORT"
until amqp-declare-queue $at -d -q jobs >/dev/null; do sleep 0.2; done
if [ "$1" = work ]; then
    echo "worker is ready"
    while :; do
        amqp-consume $at -q jobs -p 1 "$0" one
        sleep 0.2
    done
fi
number=$2
while [ "$number" -lt "$3" ]; do
    until amqp-publish $at -p -r jobs -b "$number"; do sleep 0.2; done
    number=$((number + 1))
done
echo ok

#!/bin/sh
# What a target in an Auto Scaling group does at its start and at its end.
#
#   autoscaling.sh ready GROUP HOOK                    lets the launching hook go on
#   autoscaling.sh drain GROUP HOOK TARGET-GROUP-ARN   waits for the end, drains, lets the
#                                                      terminating hook go on
#
# Draining, with a terminating hook that holds the instance meanwhile: once the group has decided
# that this instance goes, it is taken out of the target group, which gives it no new flows. When
# the load balancer is through with it, and no packet has come for QUIET_SECONDS, gwlbtun is
# stopped (SIGTERM: its DESTROY hooks run), and the hook is told to go on. After DRAIN_SECONDS all
# that happens even if packets still come. Running it again after a failure does no harm.
#
# Needs curl, AWS CLI and systemd, and the instance's role must allow what it says to AWS. From the
# environment: AWS_DEFAULT_REGION, and these where the defaults do not fit.
set -eu

: "${METADATA:=http://169.254.169.254/latest}"
: "${HEALTH:=http://127.0.0.1:8080/}"
: "${POLL_SECONDS:=5}"
: "${QUIET_SECONDS:=20}"
: "${DRAIN_SECONDS:=600}"

fail() {
    echo "autoscaling.sh: $1" >&2
    exit "$2"
}

say() {
    echo "autoscaling.sh: $1"
}

# IMDSv2: each answer needs a token. The answer may be empty while an instance starts.
metadata() {
    token=$(curl -fsS -m 5 -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" \
        "$METADATA/api/token") &&
        curl -fsS -m 5 -H "X-aws-ec2-metadata-token: $token" "$METADATA/meta-data/$1"
}

# Packets that the load balancer has sent, by the health page. Nothing if gwlbtun does not answer.
received() {
    curl -s -m 5 "$HEALTH" | awk '
        /^UDP receiver thread [0-9]/ && match($0, /[0-9]+ packets in/) {
            sum += substr($0, RSTART, RLENGTH) + 0
            seen = 1
        }
        END { if (seen) printf "%.0f\n", sum }'
}

go_on() {
    aws autoscaling complete-lifecycle-action --auto-scaling-group-name "$1" \
        --lifecycle-hook-name "$2" --instance-id "$3" --lifecycle-action-result CONTINUE ||
        fail "the hook $2 of $1 was not told to go on; see the line above" 1
}

wait_for_the_end() {
    until [ "$(metadata autoscaling/target-lifecycle-state)" = Terminated ]; do
        sleep "$POLL_SECONDS"
    done
}

# Until nothing has come for QUIET_SECONDS, or the time given is over.
wait_for_quiet() {
    left=$1 quiet=0 before=$(received)
    while [ "$quiet" -lt "$QUIET_SECONDS" ]; do
        if [ "$left" -le 0 ]; then
            say "packets still come; stopping all the same"
            return
        fi
        sleep "$POLL_SECONDS"
        left=$((left - POLL_SECONDS)) quiet=$((quiet + POLL_SECONDS)) now=$(received)
        if [ "$now" != "$before" ]; then
            quiet=0 before=$now
        fi
    done
    say "no packet for $quiet seconds"
}

drain() {
    wait_for_the_end
    say "the group lets this instance go: draining"
    end=$(($(date +%s) + DRAIN_SECONDS))
    # The group has done this before, as long as the target group is one of its own.
    aws elbv2 deregister-targets --target-group-arn "$3" --targets "Id=$instance" ||
        say "not taken out of the target group; going on"
    timeout "$DRAIN_SECONDS" aws elbv2 wait target-deregistered --target-group-arn "$3" \
        --targets "Id=$instance" || say "the load balancer is not through with it; going on"
    wait_for_quiet $((end - $(date +%s)))
    systemctl stop gwlbtun
    go_on "$1" "$2" "$instance"
}

case "${1-} $#" in
"ready 3" | "drain 4") ;;
*)
    usage="usage: autoscaling.sh ready GROUP HOOK | drain GROUP HOOK TARGET-GROUP-ARN"
    fail "$usage" 2
    ;;
esac
for tool in aws awk curl systemctl timeout; do
    command -v "$tool" >/dev/null || fail "$tool is missing; install it" 2
done
instance=$(metadata instance-id) || fail "no metadata service at $METADATA; is this EC2?" 1
if [ "$1" = ready ]; then
    go_on "$2" "$3" "$instance"
else
    drain "$2" "$3" "$4"
fi

#!/usr/bin/env bash
# A SLURM cluster of this one machine, for tests/test_workers.py:   tests/slurm_here.sh start | stop
# Needs root and: apt-get install slurm-wlm munge. Prints what to export; leaves nothing behind but /tmp/slurm_here.
set -euo pipefail
folder=/tmp/slurm_here
export SLURM_CONF=$folder/slurm.conf

start() {
  mkdir -p $folder/state $folder/spool /run/munge
  chown munge: /run/munge /var/log/munge /var/lib/munge
  pgrep -u munge munged > /dev/null || setpriv --reuid munge --regid munge --clear-groups /usr/sbin/munged
  cat > $SLURM_CONF << END
ClusterName=here
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
KillWait=30
SchedulerParameters=requeue_delay=1,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=$(hostname) NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
END
  slurmctld -f $SLURM_CONF
  sleep 2
  slurmd -f $SLURM_CONF
  sleep 3
  sinfo
  echo "export SLURM_CONF=$SLURM_CONF"
}

stop() {
  kill "$(cat $folder/slurmd.pid)" "$(cat $folder/slurmctld.pid)"
  pkill -u munge munged || true
  rm -rf $folder
}

"${1:?start or stop}"

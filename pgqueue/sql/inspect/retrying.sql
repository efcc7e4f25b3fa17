-- Which jobs wait to be tried again, why, and when? The next first, at most 50.
-- One error many times: mend its cause, the jobs then succeed by themselves. crashes > 0: a worker died with the job
-- (memory? kill?); after three it ends as FAILURE. To give one up: select pgqueue.revoke('<id>');
select j.id,
       j.task,
       j.queue,
       date_trunc('seconds', j.eta) as next_try,
       j.retries,
       j.crashes,
       j.error ->> 'type' as error,
       left(split_part(j.error ->> 'message', E'\n', 1), 200) as message
  from (select r.id, r.task, r.queue, r.eta, r.retries, r.crashes, r.error
          from pgqueue.job r
         where r.worker is null and r.retries + r.crashes > 0
         order by r.eta, r.id
         limit 50) j
 order by j.eta, j.id;

-- Say how far a running task is, in any word that is not a state of finished jobs: status answers it, with p_meta as
-- the value, until the attempt ends. Answers false, and says nothing, if the worker does not hold the lease of this
-- attempt any more. Without p_worker: about any unfinished job.
--   select pgqueue.set_state('<job>', null, null, 'PROGRESS', '{"done": 3}');
-- It takes no lock on the job: a transactional task that says something would wait for its own transaction.
create or replace function pgqueue.set_state(
    p_job uuid, p_worker uuid, p_attempt integer, p_state text, p_meta json default null
) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set lock_timeout = '2s'
as $$
declare
    v_now timestamptz := pgqueue.clock();
begin
    if coalesce(p_state, '') in ('', 'SUCCESS', 'FAILURE', 'REVOKED', 'REJECTED', 'IGNORED', 'UNKNOWN') then
        raise exception 'a running task cannot say that its state is %', coalesce(nullif(p_state, ''), 'empty')
            using errcode = 'PQ002', hint = 'Use a word of your own, such as PROGRESS; a task ends by returning or raising.';
    end if;
    insert into pgqueue.progress as p (job, worker, attempt, state, meta, at)
    select j.id, j.worker, j.attempt, p_state, p_meta, v_now
      from pgqueue.job j
     where j.id = p_job and (p_worker is null or j.worker = p_worker and j.attempt = p_attempt)
        on conflict (job) do update
       set worker = excluded.worker, attempt = excluded.attempt, state = excluded.state, meta = excluded.meta,
           at = excluded.at;
    return found;
end
$$;

-- Lock the job of an attempt for the rest of the transaction, or raise PQ001 if its lease has passed on. First
-- statement of a transactional task: the sweep passes over locked rows, so the attempt cannot be taken back
-- before its commit. Asked after a COMMIT whose answer got lost, it waits for that transaction to end and then
-- tells its outcome: still held means rolled back. Until its end the transaction is called `attempt of <worker>`, so
-- that end_sessions finds it.
--   select pgqueue.hold('<job>', '<worker>', 1);
create or replace function pgqueue.hold(p_job uuid, p_worker uuid, p_attempt integer) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off
as $$
begin
    perform from pgqueue.job j
      where j.id = p_job and j.worker = p_worker and j.attempt = p_attempt
        for update;
    if not found then
        raise exception 'the lease of job % (attempt %) is lost', p_job, p_attempt using errcode = 'PQ001',
            hint = 'Another worker has it now, or it has ended; nothing that this attempt writes is accepted.';
    end if;
    perform set_config('application_name', 'attempt of ' || p_worker, true);
end
$$;

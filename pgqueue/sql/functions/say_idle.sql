-- Say that a worker has nothing to do on these queues: from the commit on, and for a minute, an enqueue notifies channel
-- "pgqueue.work". Claim once more afterwards, then wait; say it again every 30 s. A NOTIFY costs every commit of the
-- database, so only who really waits says so.
--   select pgqueue.say_idle('<worker>', '{default}');
create or replace function pgqueue.say_idle(p_worker uuid, p_queues text[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_until timestamptz := pgqueue.clock() + interval '1 minute';
begin
    insert into pgqueue.idle as i (queue, worker, until)
    select q, p_worker, v_until from unnest(p_queues) q
        on conflict (queue, until, worker) do nothing;
end
$$;

-- Say that a worker has nothing to do on these queues: from the commit on, an enqueue notifies channel
-- "pgqueue.work". Claim once more afterwards, then wait. Said rarely: a NOTIFY costs every commit of the database.
--   select pgqueue.say_idle('<worker>', '{default}');
create or replace function pgqueue.say_idle(p_worker uuid, p_queues text[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    insert into pgqueue.idle as i (queue, worker)
    select q, p_worker from unnest(p_queues) q
        on conflict (queue, worker) do nothing;
end
$$;

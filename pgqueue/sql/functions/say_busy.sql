-- Take back what say_idle said: from now on no enqueue notifies for the sake of this worker.
--   select pgqueue.say_busy('<worker>');
create or replace function pgqueue.say_busy(p_worker uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
    v_now timestamptz := pgqueue.clock();
begin
    delete from pgqueue.idle i
     where i.queue = any(array(select unnest(w.queues) from pgqueue.worker w where w.id = p_worker))
       and i.until > v_now and i.worker = p_worker;
end
$$;

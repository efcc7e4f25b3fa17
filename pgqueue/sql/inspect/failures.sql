-- What failed last, and with which error? The latest first, at most 50.
-- `message` is the first line; `place` is where in the code it was raised, from the end of the traceback.
-- The whole of it: select error ->> 'traceback' from pgqueue.result where id = '<id>';
select r.finished_at,
       r.id,
       r.task,
       r.queue,
       r.error ->> 'type' as error,
       left(split_part(r.error ->> 'message', E'\n', 1), 200) as message,
       array_to_string(regexp_match(right(r.error ->> 'traceback', 4000), '.*File "([^"]+)", line ([0-9]+)'), ':') as place,
       r.retries,
       r.crashes
  from (select f.finished_at, f.id, f.task, f.queue, f.error, f.retries, f.crashes
          from pgqueue.result f
         where f.state = 'FAILURE'
         order by f.finished_at desc
         limit 50) r
 order by r.finished_at desc, r.id;

-- Where `pgqueue migrate` keeps which revision the tables have; inside the schema, so nobody else's.
create table pgqueue.alembic_version (
    version_num varchar(32) not null,
    constraint alembic_version_pkc primary key (version_num)
);
insert into pgqueue.alembic_version (version_num) values ('{revision}');

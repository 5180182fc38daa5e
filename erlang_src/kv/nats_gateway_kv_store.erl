%% Where the values are: the retained messages of a broker.
%%
%% All functions are called by the processes of a client (`nats_gateway_kv_session',
%% `nats_gateway_kv_consumer'), and may wait for the broker. The rights have been checked before.
-module(nats_gateway_kv_store).

-export_type([store/0, value/0, summary/0, change/0, expected/0, write_error/0, where/0]).

-type store() :: {module(), Context :: term()}.

%% `at' is in milliseconds of Unix time.
-type value() :: #{
    revision := pos_integer(),
    at := integer(),
    headers := nats_gateway_nif:headers(),
    payload := binary()
}.

%% What is known of a value that was not read. `size' is that of the payload.
-type summary() :: #{revision := pos_integer(), at := integer(), size := non_neg_integer()}.

%% The message that a subscription brings for a topic. A deleted key has no payload.
-type change() :: {put | delete, Topic :: binary(), value()}.

%% The revision that the key must have; 0: it must have no value
-type expected() :: any | non_neg_integer().

-type write_error() :: {wrong_last, Revision :: non_neg_integer()} | {failed, Text :: binary()}.

%% Among which writers create and update are atomic.
-type where() :: cluster | gateway.

-callback where() -> where().

%% Called by the process that is going to use the store, for the requests of a client or for one of its
%% watchers. Returns a process that is linked to the caller, and without which the store is of no use.
%%
%% This function and the others throw `{store, nats_gateway_kv_answer:failure()}' if the broker refuses
%% something, or is not there.
-callback open(session | consumer, Context) -> {Context, none | pid()} when Context :: term().

%% A watcher goes on with another session.
-callback hand_over(OfSession :: Context, OfWatcher :: Context) -> Context when Context :: term().

-callback read([Topic :: binary()], Context :: term()) -> [{ok, value()} | none].

%% Writes, if the key has the expected revision, and returns the new one. `Ttl' is in seconds.
-callback write(Topic, expected(), Write, Context :: term()) ->
    {ok, Revision :: pos_integer()} | {error, write_error()}
when
    Topic :: binary(),
    Write ::
        {put, Headers :: undefined | binary(), Payload :: binary(), Ttl :: undefined | pos_integer()}
        | {delete, Headers :: binary()}.

%% Folds over the messages that are retained for a filter. Changes meanwhile may or may not be seen.
%% The payloads are left out, because all of them together may be more than the memory.
-callback fold(Filter :: binary(), fun((Topic :: binary(), summary(), Acc) -> Acc), Acc, Context) ->
    Acc
when
    Acc :: term(), Context :: term().

%% The calling process gets messages from now on, which `change/2' understands.
-callback subscribe(Filter :: binary(), Context :: term()) -> ok.

-callback change(Message :: term(), Context :: term()) -> change() | ignore.

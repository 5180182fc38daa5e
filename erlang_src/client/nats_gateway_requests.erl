%% Requests that the gateway answers in the place of the broker: those of `$SYS.REQ', and those to
%% the key/value store. It asks whoever has the answer, and makes the deliveries of answers.
%%
%% The answers go to the requester alone, and never to the broker, whose names they would need. So
%% only a plain subscription of the requester gets an answer.
-module(nats_gateway_requests).

-export([of_system/3]).
-export([user_info/4]).
-export([ask_server/3]).
-export([ask_store/4]).
-export([answer/4]).
-export([feed/3]).
-export([client_event/4]).

-include("nats_gateway.hrl").

-export_type([request/0, feed/0]).

-type request() :: user_info | {server, Name :: binary()} | store.

%% A message for a subscription that the client has: with the subject of that, or with another one.
-type feed() :: {
    inbox | Topic :: binary(), nats_gateway_nif:reply(), nats_gateway_nif:headers(), Payload :: binary()
}.

%% What a request to `$SYS.REQ.<Name>' is. With `none' it is a publish like any other: it has no
%% responders, as all that begins with `$SYS.'.
-spec of_system(Name :: binary(), nats_gateway_host:client(), nats_gateway_host:session()) ->
    request() | none.
of_system(<<"USER.INFO">>, _, _) ->
    user_info;
of_system(<<"SERVER.", Name/binary>>, Client, Session) ->
    case nats_gateway_admission:has_system_access(Client, Session) of
        true -> {server, Name};
        false -> none
    end;
of_system(_, _, _) ->
    none.

%% The answer to a client's question who it is.
-spec user_info(#pub{}, nats_gateway_host:client(), nats_gateway_admission:grant(), Subs) ->
    [#delivery{}]
when
    Subs :: nats_gateway_subscriptions:subscriptions().
user_info(#pub{reply_topic = ReplyTopic}, Client = #{config := Config}, Grant, Subs) ->
    case subscribed(ReplyTopic, Subs) of
        {ok, Delivery} ->
            User = nats_gateway_admission:user(Client, Grant),
            [Delivery#delivery{payload = nats_gateway_system:user_info(User, Config)}];
        none ->
            []
    end.

%% Passes a request on to the servers that the host knows. Their answers come through
%% `nats_gateway_channel:answer/4'.
-spec ask_server(module(), #pub{}, Asked) -> pass | no_responders when
    Asked :: #{name := binary(), max := non_neg_integer(), by := binary()}.
ask_server(Host, #pub{payload = Body, reply_topic = ReplyTopic}, Asked) when is_binary(ReplyTopic) ->
    Request = Asked#{body => Body, requester => self(), reply_topic => ReplyTopic},
    case erlang:function_exported(Host, ask_server, 1) andalso Host:ask_server(Request) of
        ok -> pass;
        _ -> no_responders
    end;
ask_server(_, _, _) ->
    %% A reply subject that is no topic of its own is nothing that anybody is subscribed to.
    no_responders.

%% Passes a request on to the host's store. It answers through `nats_gateway_channel:answer/4' and
%% `nats_gateway_channel:feed/3'.
-spec ask_store(module(), #pub{}, nats_gateway_host:client(), HostState) ->
    {nats_gateway_publishing:verdict() | nats_gateway_host:rejection(), HostState}
when
    HostState :: term().
ask_store(Host, Pub, #{config := #{kv := Buckets}}, HostState) ->
    case erlang:function_exported(Host, ask_store, 3) of
        true -> Host:ask_store(Pub, Buckets, HostState);
        false -> {no_responders, HostState}
    end.

%% The answer to a request, if its requester is still subscribed.
-spec answer(ReplyTopic :: binary(), nats_gateway_nif:headers(), Payload :: binary(), Subs) ->
    [#delivery{}]
when
    Subs :: nats_gateway_subscriptions:subscriptions().
answer(ReplyTopic, Headers, Payload, Subs) ->
    case subscribed(ReplyTopic, Subs) of
        {ok, Delivery} -> [Delivery#delivery{headers = Headers, payload = Payload}];
        none -> []
    end.

%% Messages that come neither from the broker nor as an answer. `none': nobody is subscribed.
-spec feed(Topic :: binary(), [feed()], nats_gateway_subscriptions:subscriptions()) ->
    {ok, [#delivery{}]} | none.
feed(Topic, Feeds, Subs) ->
    case subscribed(Topic, Subs) of
        {ok, Delivery} -> {ok, [fed(Feed, Delivery) || Feed <- Feeds]};
        none -> none
    end.

fed({inbox, Reply, Headers, Payload}, Delivery) ->
    Delivery#delivery{reply = Reply, headers = Headers, payload = Payload};
fed({Topic, Reply, Headers, Payload}, Delivery) ->
    Delivery#delivery{topic = Topic, reply = Reply, headers = Headers, payload = Payload}.

%% An event of `nats_gateway_client_events' for the filters that match it.
-spec client_event(Subject :: binary(), Payload :: binary(), Mountpoint :: binary(), Watched) ->
    [#delivery{}]
when
    Watched :: nats_gateway_client_events:watched().
client_event(Subject, Payload, Mountpoint, Watched) ->
    Topic = nats_gateway_nif:topic(Subject, Mountpoint),
    [
        #delivery{key = Key, topic = Topic, payload = Payload}
     || is_binary(Topic), Key <- nats_gateway_client_events:matching(Topic, Watched)
    ].

subscribed(Topic, Subs) ->
    case nats_gateway_publishing:plain_sid(Topic, Subs) of
        undefined ->
            none;
        Sid ->
            {ok, #delivery{key = nats_gateway_subscriptions:key(Sid, Subs), topic = Topic, payload = <<>>}}
    end.

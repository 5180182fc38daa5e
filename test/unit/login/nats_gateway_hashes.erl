%% bcrypt hashes for tests, made by crypt(3).
-module(nats_gateway_hashes).

-export([bcrypt/2, bcrypt/3]).

-spec bcrypt(Password :: binary(), Cost :: 4..31) -> binary().
bcrypt(Password, Cost) -> bcrypt(Password, Cost, 1).

%% One with another salt for each number.
-spec bcrypt(Password :: binary(), Cost :: 4..31, Number :: pos_integer()) -> binary().
bcrypt(Password, Cost, Number) -> lists:nth(Number, hashes(Password, Cost)).

hashes(<<"w0rd">>, 4) ->
    [
        <<"$2b$04$N0.abcdefghijklmnopqruq0Fe5w5Fc8Je7Nk9S.IG75odHy4QIna">>,
        <<"$2b$04$N1.abcdefghijklmnopqruHX9E1gXTkU993JNZqfasVXQFunljjYS">>
    ];
hashes(<<"w0rd">>, 8) ->
    [
        <<"$2b$08$N0.abcdefghijklmnopqruYUTy/ZJc19tXHJH9goSmEzYixSXv5W.">>,
        <<"$2b$08$N1.abcdefghijklmnopqru8m3s6624rJM5qogR3HI0Spm8VNuj9ne">>,
        <<"$2b$08$N2.abcdefghijklmnopqruxU72Z9Ocai1mNdWBDZONiU5WoXqn6kS">>,
        <<"$2b$08$N3.abcdefghijklmnopqruWEXUGqavQS0VZzAsDt1oSXR/VY7kwI6">>
    ];
hashes(<<"w0rd">>, 10) ->
    [<<"$2b$10$N0.abcdefghijklmnopqrul/LR4wBPFlpDMTYmxIdCCWVngBCXnEO">>];
hashes(<<"w0rd">>, 12) ->
    [<<"$2b$12$N0.abcdefghijklmnopqruST.yQ/FH1qi3GqouYc0fIgFl8k10fCm">>];
hashes(<<"w0rd-0f-ann">>, 12) ->
    [<<"$2b$12$N0.abcdefghijklmnopqruUqnLL5uftWieXYxJZgA3yxJaGaOwD62">>];
hashes(<<"a">>, 4) ->
    [<<"$2b$04$N0.abcdefghijklmnopqru6k0MK0LfOetA3qUGPO58GJkp26FctJO">>];
hashes(<<"b">>, 4) ->
    [<<"$2b$04$N0.abcdefghijklmnopqrucBI9wAC0uwT785Saf55/A40QFtopL5G">>];
hashes(<<>>, 4) ->
    [<<"$2b$04$N0.abcdefghijklmnopqruUbj4BYRF3Qsis498.rIO8rdac7Jkgi2">>];
hashes(<<"p">>, 5) ->
    [<<"$2b$05$N0.abcdefghijklmnopqruVyim3XqLqC1t6bndKPK.Kv5daGp6r/q">>];
hashes(<<"ppp", _:68/binary>>, 4) ->
    [<<"$2b$04$N0.abcdefghijklmnopqru0rZAGag8rtt4KyWrjPydYtM8WjQ3wbm">>].
